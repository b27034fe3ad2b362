"""What the documents say of this repository is so. What they tell people to type: test_documented_commands.py."""

import re

import pytest
import yaml

from focal_twins.config.task_sections import TASK_SECTIONS
from focal_twins.measuring.published import PUBLISHED
from focal_twins.models import find_model, list_models
from tests.conftest import PACKAGE, ROOT
from tests.documents import (
    DOCUMENTS,
    TRANSLATIONS,
    anchors_of,
    bare,
    blocks_of,
    cells_of,
    figures_of,
    in_english,
    inline_code_of,
    levels_of,
    links_of,
    prose_of,
    sections_of,
    text_of,
    uncommented,
)
from tests.reference import figures

PAIRS = sorted(TRANSLATIONS.items())
LANGUAGES = ("bash", "python", "text", "bibtex", "mermaid")
SUFFIXES = ("py", "json", "zip", "yaml", "onnx", "mindir", "safetensors")
KEYS: dict[str, set[str]] = {}
for sections in TASK_SECTIONS.values():
    for section, schema in sections.schemas().items():
        KEYS.setdefault(section, set()).update(schema.model_fields)
BACKBONES, SEGMENTORS = ("focal", "focalv2", "twins"), ("upernet", "semantic_fpn")
DETECTORS = ("retinanet", "atss", "mask_rcnn", "cascade_rcnn", "reppoints_v2", "sparse_rcnn")
KEYS["backbone"] = {"name"}.union(*(find_model(family)[0].parameters() for family in BACKBONES))
KEYS["model"] = KEYS["backbone"].union(*(find_model(family)[0].parameters() for family in SEGMENTORS + DETECTORS))
FOLDERS = ("src", "scripts", "configs", "docs", "examples", "tests")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    links = links_of(document)
    for path, anchor in links:
        assert path.exists(), f"{document}: no {path}"
        if anchor:
            name = str(path.resolve().relative_to(ROOT))
            assert anchor in anchors_of(name), f"{document}: {name} has no heading #{anchor}"


@pytest.mark.parametrize("readme", ["README.md", "README_zh.md"])
def test_readme_leads_to_every_page(readme):
    """The English one to English pages, the Chinese one to Chinese pages where there are any."""
    linked = {str(path.resolve().relative_to(ROOT)) for path, _ in links_of(readme)}
    chinese = readme != "README.md"
    for document in DOCUMENTS:
        if document.count("/") < 2 and document not in ("README.md", *TRANSLATIONS.values()):
            assert (TRANSLATIONS.get(document, document) if chinese else document) in linked, f"no link to {document}"


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_translations_are_linked_with_each_other(english, chinese):
    for document, other in ((english, chinese), (chinese, english)):
        assert ROOT / other in {path.resolve() for path, _ in links_of(document)}, document
    for path, _ in links_of(chinese):
        name = str(path.resolve().relative_to(ROOT))
        assert name == english or name not in TRANSLATIONS, (
            f"{chinese} leads to {name}, of which there is a translation"
        )


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_translations_have_the_same_code(english, chinese):
    """What is typed, shown and cited is the same; comments are in the reader's language."""
    first, second = ([(b.language, uncommented(b.text)) for b in blocks_of(name)] for name in (english, chinese))
    assert first == second


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_translations_have_the_same_headings_figures_links_and_names(english, chinese):
    """Section by section, so that a figure changed in one of them alone is noticed."""
    assert levels_of(english) == levels_of(chinese)
    for section, other in zip(sections_of(english), sections_of(chinese), strict=True):
        assert figures_of(section) == figures_of(other), section[:60]
    assert [len(row) for row in cells_of(english)] == [len(row) for row in cells_of(chinese)]
    for kind in (inline_code_of, lambda name: [in_english(path.name) for path, _ in links_of(name)]):
        first, second = (set(kind(name)) for name in (english, chinese))
        assert first == second


@pytest.mark.parametrize("chinese", sorted(TRANSLATIONS.values()))
def test_translations_are_complete(chinese):
    """No sentence, and no cell of a table, is left in English: three words in a row, of which none is a name."""
    for line in bare(prose_of(chinese)).splitlines():
        found = re.search(r"\b[A-Za-z]?[a-z]+(?: [a-z]{2,}){2,}\b", line)
        assert found is None, f"{chinese}: {found[0]}"


def test_map_names_every_module():
    """Every file of the package and every folder in it; nothing that is not there."""
    (listing,) = (block.text for block in blocks_of("docs/architecture.md") if block.text.startswith("train.py"))
    paths = set(re.findall(r"(?<![\w/])[\w/]+(?:\.py|/)(?=[\s,;)]|$)", listing))
    there = {path.name for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    there |= {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    there |= {f"{name}/" for name in FOLDERS if name != "src"}
    there |= {"src/focal_twins/", "train.py", "eval.py", "export.py"}
    assert there <= paths, f"the map does not mention {sorted(there - paths)}"
    for path in paths - there:
        assert any((parent / path).exists() for parent in (ROOT, PACKAGE, *map(ROOT.joinpath, FOLDERS))), path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_and_keys_in_the_text_exist(document):
    """Paths and configuration keys in inline code. Words in capitals stand for something: NAME, N."""
    for code in inline_code_of(document):
        path = re.match(rf"(?:{'|'.join(FOLDERS)})/[\w./*-]+", code)
        if path and not re.search(r"[A-Z]{2,}|^src/configs/", code):
            assert list(ROOT.glob(path[0].rstrip("/"))), f"{document}: no {path[0]}"
        for section, key in re.findall(r"(?:^|\s)(\w+)\.(\w+)(?==|$|\s)", code):
            if section in KEYS and key not in SUFFIXES:
                assert key in KEYS[section], f"{document}: no key {section}.{key}"


def sources_of(script: str) -> str:
    """A script with what gives it its flags: its module in the package, and the command line that they share."""
    source = (ROOT / script).read_text(encoding="utf-8")
    if script.endswith(".sh"):
        return source
    modules = re.findall(r"^from focal_twins\.(commands\.\w+|cli) import", source, re.MULTILINE)
    paths = [PACKAGE / f"{module.replace('.', '/')}.py" for module in modules]
    return "\n".join([source, *(path.read_text(encoding="utf-8") for path in paths)])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_the_text_name_scripts_and_flags_that_exist(document):
    """Inline commands; those in blocks are run."""
    for code in inline_code_of(document):
        command = re.match(r"(?:python |bash |mpirun .*python )?((?:scripts/)?\w+\.(?:py|sh))((?: .*)?)$", code)
        if command is None or not command[1].startswith(("scripts/", "train.py", "eval.py", "export.py")):
            continue
        for flag in re.findall(r"(?<= )--[\w-]+", command[2]):
            assert f'"{flag}"' in sources_of(command[1]), f"{document}: {command[1]} has no {flag}"


def test_model_table():
    """All models, with the authors' figures and the originals' numbers of parameters."""
    rows = re.findall(
        r"^\| \[(\w+)\]\((.+?)\) \| ([\d,]+) \| ([\d.]+) G \| (.+?) \| (.+?) \|$", prose_of("docs/models.md"), re.M
    )
    assert sorted(row[0] for row in rows) == list_models()
    originals = figures("logits")
    for name, config, parameters, _, multiply_accumulates, top1 in rows:
        assert yaml.safe_load((ROOT / "docs" / config).read_text())["model"]["name"] == name
        if name in originals:
            assert int(parameters.replace(",", "")) == originals[name]["params"]
            published = PUBLISHED[name]
            assert abs(int(parameters.replace(",", "")) / 1e6 - published.parameters) < 0.1
            assert (multiply_accumulates, top1) == (f"{published.multiply_accumulates} G", f"{published.top1}%")
        else:
            assert name not in PUBLISHED
            assert "reconstructed" in top1


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_are_of_a_kind_that_is_tested(document):
    for block in blocks_of(document):
        assert block.language in LANGUAGES, f"{document}:{block.line}: ```{block.language} is run by no test"
    assert text_of(document).count("```") == 2 * len(blocks_of(document))


def test_citation_names_the_papers_that_the_readme_cites():
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert (citation["cff-version"], citation["license"]) == ("1.2.0", "MIT")
    (bibtex,) = (block.text for block in blocks_of("README.md") if block.language == "bibtex")
    for paper in citation["references"]:
        assert f"{{{paper['title']}}}" in bibtex
        names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
        assert f"{{{names}}}" in bibtex
        assert paper["journal"] in bibtex
