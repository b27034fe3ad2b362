"""Make the documentation site of the files as they stand in the repository: mkdocs build, mkdocs serve.

A hook of mkdocs.yml. The documents of the top folder become pages of the site, and so does every file or folder that a
document links to, with its text. So links work here, in the repository's viewer, and without any address of either.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
TOP = {"README.md": "index.md", "README_zh.md": "index_zh.md"}  # other documents of the top folder keep their names
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".sh": "bash"}


def page_of(path: str) -> str:
    """Name the page, or the picture, of the site that shows a file or folder of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if "/" not in path and path.endswith(".md"):
        return TOP.get(path, path)
    return f"source/{path}/index.md" if (ROOT / path).is_dir() else f"source/{path}.md"


def path_of(page: str) -> str:
    """Name the file of the repository that a page of the site shows."""
    if page.startswith("source/"):
        return page.removeprefix("source/").removesuffix(".md").removesuffix("/index")
    tops = {name: path for path, name in TOP.items()}
    path = tops.get(page, page)
    return path if (ROOT / path).is_file() else f"docs/{path}"


def targets_of(path: str, text: str) -> set[str]:
    """List the files and folders of the repository that a document links to."""
    return {posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for link in LINK.findall(text)}


def source_of(path: str) -> str:
    """Write the text of a document, or the page of another file (its code) or folder (links to its files)."""
    place = ROOT / path
    if place.suffix == ".md":
        return place.read_text(encoding="utf-8")
    header = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n"
    if place.is_dir():
        names = sorted(child.name for child in place.iterdir() if child.suffix in LANGUAGES)
        return header + "".join(f"- [{name}]({place.name}/{name})\n" for name in names)
    text = place.read_text(encoding="utf-8")
    return f"{header}``````{LANGUAGES.get(place.suffix, 'text')}\n{text}``````\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents of the top folder, and a page for every file or folder that a document links to."""
    waiting = [path.name for path in ROOT.glob("*.md")]
    waiting += [path_of(file.src_uri) for file in files.documentation_pages()]
    while waiting:
        path = waiting.pop()
        page = page_of(path)
        place = ROOT / path
        if not page.endswith(".md") or not place.exists():
            continue  # pictures are there already; a link to nothing is told by the build
        content = source_of(path)
        if page not in files.src_uris:
            listed = InclusionLevel.NOT_IN_NAV if page.startswith("source/") else InclusionLevel.INCLUDED
            files.append(File.generated(config, page, content=content, inclusion=listed))
        if place.is_dir() or place.suffix == ".md":
            waiting += [target for target in targets_of(path, content) if page_of(target) not in files.src_uris]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to the pages of the site."""
    here = page.file.src_uri
    path = path_of(here)

    def on_the_site(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link[1]))
        return posixpath.relpath(page_of(target), posixpath.dirname(here))

    return LINK.sub(on_the_site, markdown)
