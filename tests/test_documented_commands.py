"""Every statement in the documents' blocks does what it says, as typed, in a copy of the repository.

The copy is small where the original is large: a network that compiles fast, one epoch, a few images, random weights of
the published models, types and tests of one file. Statements are typed in the order of the documents, for later ones
use what earlier ones made.
Each is of one of three kinds, found by the rules below and not by a list that a new one could be missing from:

- run: everything, unless
- build: train.py, eval.py, export.py and the scripts around them, where they need ImageNet, an Ascend, or a model of a
  published size (hours on two cores). Configuration and model are built, see tests/up_to_the_model.py.
- elsewhere: what belongs to the Ascend's own software or installs packages. The rule says why; nothing is run.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from focal_twins.files.weights import save_weights
from focal_twins.models import create_model, list_models
from tests.conftest import ROOT, TOY_MODEL
from tests.documents import DOCUMENTS, TRANSLATIONS, Block, blocks_of, statements_of, uncommented
from tests.processes import ALLOWED, BIN

DEPLOYMENT = "docs/deployment.md"  # exports what the pages on segmentation and detection train
ELSEWHERE = {
    r"npu-smi|/usr/local/Ascend|set_device\('Ascend'\)": "the Ascend's driver, toolkit and devices",
    r"scripts/check_ascend\.py": "all networks at two precisions; tests/device_checks runs some of them",
    r"scripts/download_weights\.py \w": "the network; tests/files/test_published_weights.py has a stand-in for the hub",
    r"^pip install (\"onnx|\.$)": "installs; the environment of the tests has the same, and test_package.py the wheel",
}
IN_ONE_GO = ("docs/python.md",)  # documents whose Python test_python_guide.py runs from top to bottom
ENTRY_POINT = re.compile(r"\b(train|eval|export)\.py\b|scripts/run_\w+\.sh")
NEEDS_MORE_THAN_A_TEST_HAS = re.compile(
    r"/data\b|Ascend|\bAIR\b|\b(focal|focalv2)[_-](tiny|small|base|large)|\btwins_(pcpvt|svt)_"
)
PUBLISHED_WEIGHTS = {
    "focal-tiny-is224-ws7.pth": "focal_tiny_patch4_window7_224",
    "focalv2-tiny-useconv-is224-ws7.pth": "focalv2_tiny_useconv_patch4_window7_224",
}
BEST = "runs/focalv2_digits/checkpoints/best.ckpt"
STANDS_FOR = {  # words in capitals, and places outside of the repository
    r"\bNAME\b": "focalv2_digits",
    r"(?<=--checkpoint )C\b": BEST,
    r"/data(?=[/ ]|$)": "data_of_others",
}
TESTS_IN_THE_COPY = (
    "conftest.py",
    "reference.py",
    "reference/dense_schedules.json",
    "reference/schedule.json",
    "slow_tests.txt",
    "training/conftest.py",
    "training/states.py",
    "training/test_schedule.py",
)


@dataclass(frozen=True)
class Statement:
    """Something to type, by the first document that says it."""

    block: Block
    text: str

    @property
    def kind(self) -> str:
        if self.block.language == "python":
            return "run"
        if any(re.search(pattern, self.text) for pattern in ELSEWHERE):
            return "elsewhere"
        needy = ENTRY_POINT.search(self.text) and NEEDS_MORE_THAN_A_TEST_HAS.search(self.text)
        return "build" if needy else "run"

    @property
    def command(self) -> str:
        """The statement with what its words in capitals stand for here."""
        command = self.text
        for pattern, stands_for in STANDS_FOR.items():
            command = re.sub(pattern, stands_for, command)
        return command

    def __str__(self):
        return f"{self.block.document}:{self.block.line}: {' '.join(self.text.split())[:60]}"


def every_statement() -> list[Statement]:
    """Those of all documents, in order."""
    return [
        Statement(block, text)
        for document in sorted(DOCUMENTS, key=lambda name: (name != "README.md", name == DEPLOYMENT, name))
        for block in blocks_of(document)
        if block.language == "bash" or (block.language == "python" and document not in IN_ONE_GO)
        for text in (statements_of(block) if block.language == "bash" else [uncommented(block.text)])
    ]


def once(statements: list[Statement]) -> list[Statement]:
    """Without those that come again, perhaps with other line breaks."""
    found: dict[str, Statement] = {}
    for statement in statements:
        found.setdefault(" ".join(statement.text.replace("\\\n", " ").split()), statement)
    return list(found.values())


STATEMENTS = every_statement()
# What a new user types first, each time. The other pages take ten minutes; they need only the quickstart of these.
EACH_TIME = ("README.md", "docs/models.md", "docs/training.md", "docs/tutorial.md", "docs/weights.md")
TO_TYPE = [
    pytest.param(
        statement,
        id=str(statement),
        marks=[] if statement.block.document in EACH_TIME else pytest.mark.exhaustive,
    )
    for statement in once(STATEMENTS)
    if statement.kind != "elsewhere"
]


def write_images(folder: Path, names: list[str]) -> None:
    """Noise in colour, as JPEG files of 640x480."""
    generator = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (480, 640, 3), dtype=np.uint8)).save(folder / name)


def write_objects(folder: Path, splits: dict[str, int]) -> None:
    """Noise with a COCO JSON for each split, an object of each of three classes on every image."""
    categories = [{"id": number, "name": name} for number, name in enumerate("abc", 1)]
    (folder / "annotations").mkdir(parents=True)
    for split, count in splits.items():
        names = [f"{number}.jpg" for number in range(count)]
        write_images(folder / split, names)
        images = [{"id": i, "file_name": name, "height": 480, "width": 640} for i, name in enumerate(names)]
        places = list(product(range(count), range(3)))
        annotations = [
            {
                "id": number,
                "image_id": image,
                "category_id": 1 + c,
                "bbox": [200 * c, 90, 180, 240],
                "area": 43200,
                "iscrowd": 0,
            }
            for number, (image, c) in enumerate(places, 1)
        ]
        content = {"images": images, "categories": categories, "annotations": annotations}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def change(config: Path, **sections: dict) -> None:
    """Train a configuration for one epoch, with other values of some keys."""
    content = yaml.safe_load(config.read_text())
    one_epoch = {"train": {"epochs": 1}, "schedule": {"warmup_epochs": 0}, "data": {"workers": 1}}
    for changes in (one_epoch, sections):
        for section, values in changes.items():
            content[section] = content.get(section, {}) | values
    config.write_text(yaml.safe_dump(content))


def shrink(config: Path) -> None:
    """The quickstart's network and recipe, for one epoch of a network that compiles fast, and for like runs once."""
    keys_and_values = (override.removeprefix("model.").partition("=")[::2] for override in TOY_MODEL)
    model = {key: yaml.safe_load(value) for key, value in keys_and_values}
    change(config, model=model, runtime={"compile_cache": "graphs"})


TWO_STAGES = {  # a stage more than the shrunk classifier
    "window_size": 2, "embed_dim": 16, "depths": [2, 1], "num_heads": [1, 2], "focal_stages": [0, 1],
    "focal_levels": [1, 1], "focal_topK": 8,
}  # fmt: skip


def shrink_dense(quickstart: Path) -> None:
    """The quickstarts of segmentation and detection for one epoch of small networks on scenes.

    That their own networks start from the real classifier's weights is tested in test_quickstart.py.
    """
    recipe = {"backbone": TWO_STAGES, "train": {"epochs": 1, "batch_size": 48, "pretrained": None}}
    change(
        quickstart / "upernet_digits.yaml", **recipe, model={"channels": 8, "pool_scales": [1], "auxiliary_weight": 0.0}
    )
    scenes = {"workers": 1, "train_subset": 0.1, "val_subset": 0.1}
    change(quickstart.parent / "base/digit_scenes_detection.yaml", **recipe, data=scenes, eval={"interval": 1})
    change(quickstart / "retinanet_digits.yaml", model={"neck_channels": 8, "channels": 8, "stacked_convs": 1})


def shrink_folder_of_objects(config: Path) -> None:
    """The recipe for photographs with a COCO JSON, on images a fourth as large."""
    change(
        config,
        backbone={"img_size": [64, 96], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]},
        model={"neck_channels": 8, "channels": 8, "stacked_convs": 1},
        data={"canvases": [[64, 96], [96, 64]], "workers": 1},
        augment={"short_sides": [48, 64], "long_side": 96},
        eval={"short_side": 64, "long_side": 96},
    )


def shrink_checks(folder: Path) -> None:
    """Lint, types and tests as in the original, of less: the types of one file, and in this process a test or two."""
    settings = folder / "pyproject.toml"
    text = re.sub(
        r'^files = \[.*"src".*\]$', 'files = ["src/focal_twins/errors.py"]', settings.read_text(), flags=re.MULTILINE
    )
    settings.write_text(text.replace("--numprocesses 2", "--numprocesses 0"))
    (folder / "tests" / "test_names.py").write_text(
        "import pytest\n\n\n@pytest.mark.exhaustive\ndef test_every_name():\n    pass\n"
    )


def stand_in(folder: Path, name: str) -> None:
    """A command of that name that runs tests/up_to_the_model.py."""
    folder.mkdir(exist_ok=True)
    script = folder / name
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/tests/up_to_the_model.py" {name} "$@"\n')
    script.chmod(0o755)


class Workshop:
    """The copy of the repository, with an environment of its own in .venv, in which statements are typed."""

    def __init__(self, folder: Path):
        self.folder = folder
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        names = [name for name in listed.splitlines() if not name.startswith("tests/")]
        for name in [*names, *(f"tests/{name}" for name in TESTS_IN_THE_COPY)]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        shrink(folder / "configs/quickstart/focalv2_digits.yaml")
        shrink_dense(folder / "configs/quickstart")
        shrink_folder_of_objects(folder / "configs/finetune/retinanet_focal_folder.yaml")
        shrink_checks(folder)
        five = folder / "configs/finetune/focalv2_digits5_64.yaml"
        five.write_text(five.read_text().replace("epochs: 5\n", "epochs: 1\n"))
        self.make_environment()
        write_images(folder, ["photo.jpg", "folder/1.jpg", "photos/1.jpg", "photos/2.jpg", "more_photos/3.jpg"])
        splits = {"train": 12, "val": 2}
        write_images(folder, [f"my_images/{s}/{c}/{i}.jpg" for s, n in splits.items() for c in "abc" for i in range(n)])
        write_objects(folder / "my_set", {"train": 16, "val": 2})
        for name in ("imagenet/train", "imagenet-a", "imagenet-r"):
            write_images(folder, [f"data_of_others/{name}/n0144076{i}/0.jpg" for i in range(3)])
        for name in ("python", "mpirun", "msrun"):
            stand_in(folder / "build_only", name)

    def make_environment(self) -> None:
        """What scripts/setup_env.sh would install, from the environment of the tests; a commit to compare with."""
        venv.create(self.folder / ".venv")
        (packages,) = (self.folder / ".venv").glob("lib/*/site-packages")
        outer = [path for path in sys.path if path.endswith("-packages")]
        (packages / "outer.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in outer))
        (packages / "own.pth").write_text(f"{self.folder / 'src'}\n")  # as `pip install -e .` leaves it
        program = self.folder / ".venv/bin/focal-twins"
        program.write_text(f'#!/bin/sh\nexec "{program.with_name("python")}" -m focal_twins "$@"\n')
        program.chmod(0o755)
        for requirements in ("requirements.txt", "requirements-dev.txt"):
            wanted = (
                f"cat requirements.txt {requirements} | sha256sum | cut -d' ' -f1 > .venv/.installed-{requirements}"
            )
            subprocess.run(["bash", "-c", wanted], cwd=self.folder, check=True)
        subprocess.run("git init --quiet && git add --all", shell=True, cwd=self.folder, check=True)

    def build(self, command: str) -> list[str]:
        """Run a command as far as to the model; returns the names of the models built."""
        record = self.folder / "built.txt"
        record.write_text("")
        self.type(command, first="build_only", BUILT=str(record))
        return record.read_text().split()

    def type(self, command: str, language: str = "bash", first: str = ".venv/bin", **variables: str) -> str:
        """Run a command; returns its standard output.

        Args:
            first: the folder whose programs are found before all others.

        Raises:
            AssertionError: it fails; the message has what it printed.
        """
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "VIRTUAL_ENV", "GIT_"))
        } | ALLOWED
        environment |= {
            "PATH": f"{self.folder / first}:{self.folder / '.venv/bin'}:{BIN}:{os.environ['PATH']}",
            "PRE_COMMIT_HOME": str(self.folder / ".pre-commit-home"),
            "GLOG_v": "4",
            **variables,
        }
        call = ["bash", "-c", command] if language == "bash" else [str(self.folder / ".venv/bin/python"), "-c", command]
        done = subprocess.run(call, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    """A copy in which nothing was typed yet."""
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def weights(workshop) -> None:
    """Files by the names that the authors gave theirs, with random weights."""
    for name, model in PUBLISHED_WEIGHTS.items():
        save_weights(create_model(model), workshop.folder / name)


@pytest.fixture(scope="module")
def quickstart(workshop) -> str:
    """What the first command of the README prints."""
    return workshop.type("bash scripts/quickstart.sh")


@pytest.mark.parametrize("statement", TO_TYPE)
def test_does_what_it_says(statement, workshop, weights, request):
    if statement.kind == "run":
        request.getfixturevalue("quickstart")
        workshop.type(statement.command, language=statement.block.language)
    else:
        built = workshop.build(statement.command)
        assert len(built) >= len(ENTRY_POINT.findall(statement.text))
        assert set(built) <= {*list_models(), "focalv2"}


def test_what_is_not_run_is_said_by_a_rule_that_something_needs():
    for pattern in ELSEWHERE:
        assert any(re.search(pattern, statement.text) for statement in STATEMENTS), f"no statement matches {pattern}"
    ascend, *_, installs = ELSEWHERE
    for statement in STATEMENTS:
        if re.search(ascend, statement.text):
            assert statement.block.document in ("docs/ascend.md", TRANSLATIONS["docs/ascend.md"])
        elif re.search(installs, statement.text):
            lines = [line.split("#")[0].strip() for line in (ROOT / "requirements-dev.txt").read_text().splitlines()]
            assert set(re.findall(r'"(.+?)"', statement.text)) <= set(lines)


def test_quickstart_ends_as_the_readme_shows(quickstart):
    """The same lines, other numbers."""
    (shown,) = (block.text for block in blocks_of("README.md") if block.text.startswith("focalv2_digits:"))
    masked = [re.sub(r"\d+(\.\d+)?", "N", text.strip()).splitlines() for text in (quickstart, shown)]
    assert masked[0][-len(masked[1]) :] == masked[1]
