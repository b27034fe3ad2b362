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
    anchors_of,
    blocks_of,
    figures_of,
    inline_code_of,
    links_of,
    prose_of,
    sections_of,
    text_of,
    uncommented,
)
from tests.reference import figures

READMES = ("README.md", "README_zh.md")
LANGUAGES = ("bash", "python", "text", "bibtex", "mermaid")
SUFFIXES = ("py", "json", "zip", "yaml", "onnx", "mindir")
KEYS: dict[str, set[str]] = {}
for sections in TASK_SECTIONS.values():
    for section, schema in sections.schemas().items():
        KEYS.setdefault(section, set()).update(schema.model_fields)
BACKBONES, SEGMENTORS = ("focal", "focalv2", "twins"), ("upernet", "semantic_fpn")
DETECTORS = ("retinanet", "atss", "mask_rcnn", "cascade_rcnn", "reppoints_v2", "sparse_rcnn")
KEYS["backbone"] = {"name"}.union(*(find_model(family)[0].parameters() for family in BACKBONES))
KEYS["model"] = KEYS["backbone"].union(*(find_model(family)[0].parameters() for family in SEGMENTORS + DETECTORS))
FOLDERS = ("src", "scripts", "configs", "docs", "tests")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    links = links_of(document)
    for path, anchor in links:
        assert path.exists(), f"{document}: no {path}"
        if anchor:
            name = str(path.resolve().relative_to(ROOT))
            assert anchor in anchors_of(name), f"{document}: {name} has no heading #{anchor}"
    linked = {path.resolve() for path, _ in links}
    if document in READMES:
        assert linked >= {ROOT / other for other in [*READMES, *DOCUMENTS] if other.count("/") < 2} - {ROOT / document}


def test_readmes_have_the_same_code():
    """What is typed, shown and cited is the same; comments are in the reader's language."""
    english, chinese = ([(b.language, uncommented(b.text)) for b in blocks_of(name)] for name in READMES)
    assert english == chinese


def test_readmes_have_the_same_figures_links_and_names():
    """Section by section, so that a figure changed in one of them alone is noticed."""
    english, chinese = map(sections_of, READMES)
    assert len(english) == len(chinese)
    for section, other in zip(english, chinese, strict=True):
        assert figures_of(section) == figures_of(other), section[:60]
    for kind in (inline_code_of, lambda name: [path.name for path, _ in links_of(name)]):
        first, second = (set(kind(name)) - set(READMES) for name in READMES)
        assert first == second


def test_map_names_every_module():
    """Every file of the package and every folder in it; nothing that is not there."""
    for readme in READMES:
        (listing,) = (block.text for block in blocks_of(readme) if block.text.startswith("train.py"))
        paths = set(re.findall(r"(?<![\w/])[\w/]+(?:\.py|/)(?=[\s,;)]|$)", listing))
        there = {path.name for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
        there |= {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
        there |= {f"{name}/" for name in FOLDERS if name != "src"} | {
            "src/focal_twins/",
            "train.py",
            "eval.py",
            "export.py",
        }
        assert there <= paths, f"{readme} does not mention {sorted(there - paths)}"
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


@pytest.mark.parametrize("readme", READMES)
def test_model_table(readme):
    """All models, with the authors' figures and the originals' numbers of parameters."""
    rows = re.findall(r"^\| \[(\w+)\]\((.+?)\) \| ([\d,]+) \| ([\d.]+) G \| (.+?) \| (.+?) \|$", prose_of(readme), re.M)
    assert sorted(row[0] for row in rows) == list_models()
    originals = figures("logits")
    for name, config, parameters, _, multiply_accumulates, top1 in rows:
        assert yaml.safe_load((ROOT / config).read_text())["model"]["name"] == name
        if name in originals:
            assert int(parameters.replace(",", "")) == originals[name]["params"]
            published = PUBLISHED[name]
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


def test_figures_of_the_data_pipeline_are_the_same_everywhere():
    """The README repeats two of docs/data.md."""
    rate, ratio = re.search(
        r"two cores prepare ([\d,]+) images a second, ([\d.]+) times", text_of("README.md")
    ).groups()
    assert f"**{rate} img/s**" in text_of("docs/data.md")
    assert f"| ratio | {ratio} " in text_of("docs/data.md")
