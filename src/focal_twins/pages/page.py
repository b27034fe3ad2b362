"""Makes HTML pages in one file, which contains style, script, numbers and pictures."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from PIL import Image

from focal_twins.pages.charts import OPENING, format_number

HERE = Path(__file__).resolve().parent
# This makes the browser refuse anything that the page would load from elsewhere.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class Section:
    """Holds a heading and the HTML below it."""

    title: str
    content: str

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def page(title: str, subtitle: str, sections: Iterable[Section]) -> str:
    """Make a page of sections, with links to them. `title` and `subtitle` are text, the rest is HTML."""
    sections = [section for section in sections if section.content]
    links = "".join(f'<a href="#{section.anchor}">{html.escape(section.title)}</a>' for section in sections)
    content = "".join(
        f'<section><h2 id="{section.anchor}">{html.escape(section.title)}</h2>{section.content}</section>\n'
        for section in sections
    )
    style = (HERE / "style.css").read_text(encoding="utf-8")
    script = ""
    if OPENING in content:
        script = f"<script>\n{(HERE / 'charts.js').read_text(encoding='utf-8')}</script>"
    text = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>\n{style}</style></head>\n<body><header><h1>{html.escape(title)}</h1>"
        f'<p class="quiet">{html.escape(subtitle)}</p><nav>{links}</nav></header>\n<main>{content}</main>\n'
        f"{script}</body></html>\n"
    )
    return text.encode("utf-8", "replace").decode()  # names of files need not be UTF-8


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """Show the most important figures as tiles; each entry is (name, value, remark)."""
    return (
        '<dl class="tiles">'
        + "".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}<small>{html.escape(remark)}</small></dd></div>"
            for name, value, remark in entries
        )
        + "</dl>"
    )


class Markup(str):
    """Is HTML already, where a table would take text and escape it."""


@dataclass(frozen=True)
class Column:
    """Describes a column of a table.

    Attributes:
        format: format of its numbers for reading, as ".2f"; empty for five digits.
    """

    title: str
    format: str = ""


def table(columns: Sequence[Column | str], rows: Iterable[list], caption: str = "", name: str = "") -> str:
    """Make a table of texts, numbers and Markup. Numbers are rounded; the attribute `value` has the exact ones."""
    rows = list(rows)
    titled = [Column(column) if isinstance(column, str) else column for column in columns]
    styles = [' class="number"' if any(_is_number(row[index]) for row in rows) else "" for index in range(len(columns))]
    head = "".join(
        f'<th scope="col"{style}>{html.escape(column.title)}</th>' for column, style in zip(titled, styles, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{style}>{_cell_content(value, column.format)}</td>"
            for value, column, style in zip(row, titled, styles, strict=True)
        )
        + "</tr>\n"
        for row in rows
    )
    identifier = f' id="{name}"' if name else ""
    heading = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table{identifier}>{heading}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell_content(value: object, spec: str) -> str:
    if isinstance(value, Markup):
        return value
    if not _is_number(value):
        return "-" if value is None else html.escape(str(value))
    text = format(value, spec) if spec else str(value) if isinstance(value, int) else format_number(value)
    return f'<data value="{value!r}" title="{value!r}">{text}</data>'


def details(summary: str, content: str) -> str:
    """Wrap content that the reader unfolds by clicking its summary."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def bar(percent: float) -> Markup:
    """Make a bar as long as a percentage, for a cell of a table."""
    return Markup(f'<div class="share"><div style="width:{percent:.2f}%"></div></div>')


def encode(image: Image.Image, kind: str = "png", **options) -> bytes:
    """Encode an image as the content of a file: "png" or "jpeg", with options of Pillow's for it."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(content: bytes, kind: str, alt: str, is_small: bool) -> str:
    """Embed the content of an image file in the page."""
    data = base64.b64encode(content).decode()
    title = html.escape(alt, quote=True)
    small = ' class="small"' if is_small else ""
    return f'<img{small} src="data:image/{kind};base64,{data}" alt="{title}" title="{title}">'
