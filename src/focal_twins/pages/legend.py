"""Shows which colour a class has."""

import html
from collections.abc import Iterable

from focal_twins.pages.page import Markup
from focal_twins.pages.palette import IGNORED, hexadecimal


def swatch(colour: str) -> str:
    """Make a small field of a colour, as HTML."""
    return f'<i class="swatch" style="background:{colour}"></i>'


def named(index: int, name: str) -> Markup:
    """Make the name of a class with its colour."""
    return Markup(swatch(hexadecimal(index)) + html.escape(name))


def legend(classes: Iterable[tuple[int, str]]) -> str:
    """List classes, given as (number, name), with their colours, as HTML; the last entry stands for no class."""
    entries = [
        (hexadecimal(index), f'{html.escape(name)} <small class="quiet">{index}</small>') for index, name in classes
    ]
    entries.append(("#" + bytes(IGNORED).hex(), "no class"))
    items = "".join(f"<li>{swatch(colour)}{text}</li>" for colour, text in entries)
    return f'<ul class="legend">{items}</ul>'
