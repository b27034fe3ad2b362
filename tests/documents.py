"""The documents, as their readers take them: what to type, what to click on, which figures to believe."""

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.conftest import ROOT

DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "tests/reference/README.md"]
)
TRANSLATIONS = {name.replace("_zh.md", ".md"): name for name in DOCUMENTS if name.endswith("_zh.md")}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
INLINE_CODE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")  # may go over the end of a line
COMMENT = re.compile(r"(?:^|(?<=\s))# .*$", re.MULTILINE)
FIGURE = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*(?:e-?\d+)?%?")


@dataclass(frozen=True)
class Block:
    """A fenced block of a document, by the line that it begins in."""

    document: str
    line: int
    language: str
    text: str


@cache
def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


@cache
def blocks_of(document: str) -> tuple[Block, ...]:
    text = text_of(document)
    return tuple(
        Block(document, text.count("\n", 0, match.start()) + 2, match[1], match[2]) for match in FENCE.finditer(text)
    )


def prose_of(document: str) -> str:
    """A document without its fenced blocks."""
    return FENCE.sub("", text_of(document))


def uncommented(text: str) -> str:
    """Code without comments, which may be in another language, and the space before them."""
    return "\n".join(line.rstrip() for line in COMMENT.sub("", text).splitlines() if line.rstrip())


@cache
def statements_of(block: Block) -> tuple[str, ...]:
    """The statements of a bash block. The shell says where one ends: loops and here-documents go over several lines."""
    statements, begun = [], ""
    for line in uncommented(block.text).splitlines():
        begun += line + "\n"
        checked = subprocess.run(["bash", "-n"], input=begun, capture_output=True, text=True, check=False)
        if checked.returncode == 0 and not checked.stderr and not line.endswith("\\"):
            statements.append(begun.strip())
            begun = ""
    assert not begun, f"{block.document}:{block.line}: not a whole statement: {begun}"
    return tuple(statements)


def inline_code_of(document: str) -> list[str]:
    """Pieces of inline code, each on one line."""
    return [" ".join(code.split()) for code in INLINE_CODE.findall(prose_of(document))]


def anchors_of(document: str) -> set[str]:
    """The anchors that GitHub makes of headings."""
    anchors, seen = set(), Counter()
    for heading in HEADING.findall(prose_of(document)):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        anchors.add(anchor + (f"-{seen[anchor]}" if seen[anchor] else ""))
        seen[anchor] += 1
    return anchors


def links_of(document: str) -> list[tuple[Path, str]]:
    """(file, anchor) of the links within the repository; either may be the document itself or empty."""
    found = []
    for target in LINK.findall(prose_of(document)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        found.append(((ROOT / document).parent / path if path else ROOT / document, anchor))
    return found


def in_english(path: str) -> str:
    """The English document of a translation, and any other path as it is."""
    return path.replace("_zh.md", ".md")


def levels_of(document: str) -> list[int]:
    """The levels of the headings, in order."""
    return [len(marks) for marks in re.findall(r"^(#{1,6}) ", prose_of(document), re.MULTILINE)]


def sections_of(document: str) -> list[str]:
    """A document's prose in parts, each from a heading of the second level on; the first is what is before them."""
    return re.split(r"^## .*$", prose_of(document), flags=re.MULTILINE)


def cells_of(document: str) -> list[list[str]]:
    """The tables of a document, row by row."""
    rows = re.findall(r"^\|(.+)\|$", prose_of(document), re.MULTILINE)
    return [[cell.strip() for cell in row.split(" | ")] for row in rows]


def bare(text: str) -> str:
    """Prose without inline code and without the addresses of links."""
    return re.sub(r"https?://[^\s)]+|\]\([^)]*\)", " ", INLINE_CODE.sub(" ", text))


def figures_of(text: str) -> Counter:
    """Numbers in prose, outside of inline code and addresses; 300 and 300% are different ones."""
    return Counter(FIGURE.findall(bare(text)))
