"""Pages in one file: style, script, numbers and pictures are all within."""

import base64
import html
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from src.reporting.charts import shown

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Section:
    """A heading, and the HTML below it."""

    title: str
    content: str

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def page(title: str, subtitle: str, sections: Iterable[Section]) -> str:
    """A page of sections, with links to them. `title` and `subtitle` are text, the rest is HTML."""
    sections = [section for section in sections if section.content]
    links = "".join(f'<a href="#{section.anchor}">{html.escape(section.title)}</a>' for section in sections)
    content = "".join(
        f'<section><h2 id="{section.anchor}">{html.escape(section.title)}</h2>{section.content}</section>\n'
        for section in sections
    )
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("style.css", "charts.js"))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>\n{style}</style></head>\n<body><header><h1>{html.escape(title)}</h1>"
        f'<p class="quiet">{html.escape(subtitle)}</p><nav>{links}</nav></header>\n<main>{content}</main>\n'
        f"<script>\n{script}</script></body></html>\n"
    )


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """What counts most, as (name, value, remark)."""
    return (
        '<dl class="tiles">'
        + "".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}<small>{html.escape(remark)}</small></dd></div>"
            for name, value, remark in entries
        )
        + "</dl>"
    )


def table(heads: list[str], rows: Iterable[list], caption: str = "", name: str = "") -> str:
    """A table of texts and numbers. Numbers are rounded to be read; the exact ones are in the attribute `value`."""
    rows = list(rows)
    numeric = [any(isinstance(row[column], int | float) for row in rows) for column in range(len(heads))]
    head = "".join(
        f'<th scope="col"{_number_class(number)}>{html.escape(text)}</th>'
        for text, number in zip(heads, numeric, strict=True)
    )
    body = "".join(
        f"<tr>{''.join(_cell(value, number) for value, number in zip(row, numeric, strict=True))}</tr>\n"
        for row in rows
    )
    named = f' id="{name}"' if name else ""
    told = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table{named}>{told}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _number_class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _cell(value: object, number: bool) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        content = (
            f'<data value="{value!r}" title="{value!r}">{value if isinstance(value, int) else shown(value)}</data>'
        )
    else:
        content = "-" if value is None else html.escape(str(value))
    return f"<td{_number_class(number)}>{content}</td>"


def details(summary: str, content: str) -> str:
    """What is shown on demand."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def picture(content: bytes, kind: str, alt: str, is_small: bool) -> str:
    """An image file, within the page."""
    data = base64.b64encode(content).decode()
    named = html.escape(alt, quote=True)
    small = ' class="small"' if is_small else ""
    return f'<img{small} src="data:image/{kind};base64,{data}" alt="{named}" title="{named}">'
