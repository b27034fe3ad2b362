"""Detection by the entry points: exported files are evaluated, and what is wrong is told in one line."""

import json

import pytest

from focal_twins.files.weights import save_weights
from focal_twins.models import create_model
from focal_twins.tasks.detection.figures import BOX_FIGURES
from tests.tasks.detection.small_detection import CONFIG, build, make_data, write_config


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A run that has made one update: the options that name it. Its folder is the last one's."""
    folder = tmp_path_factory.mktemp("detection")
    path = write_config(folder, make_data(folder / "data"))
    build(path, "run", "train.stop_after_update=1").run()
    checkpoints = folder / "run" / "checkpoints"
    (checkpoints / "last.ckpt").rename(checkpoints / "best.ckpt")
    save_weights(create_model(**CONFIG["backbone"] | {"num_classes": 2}), folder / "classifier.ckpt")
    (folder / "data" / "damaged.json").write_text("{")
    return ["--config", str(path), f"runtime.output={folder / 'run'}"]


def test_an_exported_file_has_the_figures_of_the_checkpoint(options, run_script, tmp_path):
    """Of images that lie on the file's canvas; others it gets smaller."""
    lying = tmp_path / "lying.txt"
    lying.write_text("image00.png\nimage02.png\nimage03.png\n")
    of_lying = [*options, f"data.val_subset={lying}"]
    expected = figures_of(run_script, tmp_path / "checkpoint.json", *of_lying)
    assert expected["box_ar_100"] > 0
    target = tmp_path / "model.mindir"
    code, out, err = run_script("export.py", *options, "--output", target)
    assert (code, err) == (0, "")
    assert "output candidates float32" in out
    assert "verified on validation images" in out
    found = figures_of(run_script, tmp_path / "file.json", *of_lying, "--checkpoint", target)
    assert found == pytest.approx(expected, abs=0.01)


def figures_of(run_script, report, *options) -> dict[str, float]:
    """What eval.py finds."""
    code, _, err = run_script("eval.py", *options, "--json", report)
    assert (code, err) == (0, "")
    content = json.loads(report.read_text())
    return {figure.key: content[figure.key] for figure in BOX_FIGURES}


REFUSALS = {
    "missing JSON": (["eval.py", "data.val_annotations=no.json"], "data/no.json: cannot be read (No such file"),
    "damaged JSON": (["eval.py", "data.val_annotations=damaged.json"], "damaged.json: not JSON (Expecting property"),
    "JSON of other images": (["eval.py", "data.val_annotations=train.json"], "7 of the 12 images of"),
    "other classes": (["eval.py", "data.classes=[red, blue]"], "has no category 'blue'; it has red, green"),
    "wrong number of classes": (
        ["train.py", "model.num_classes=3", "runtime.output=FOLDER/other"],
        "train.json: has 2 categories, the model 3 classes; set model.num_classes=2, or choose by data.classes",
    ),
    "model of other classes": (["eval.py", "model.num_classes=3"], "bbox_head.retina_cls.weight (18, 8, 3, 3), here"),
    "float16 boxes": (["eval.py", "amp.level=O2"], "amp.level: O2 would round boxes to float16; detection has O0 and"),
    "small canvas": (["eval.py", "data.canvases=[[64, 64]]"], "data.canvases: no canvas holds images of 64 x 96"),
    "odd size": (["eval.py", "backbone.img_size=[60, 96]"], "backbone.img_size: a detector needs sides that are mult"),
    "no such level": (
        ["train.py", "model.start_level=4", "runtime.output=FOLDER/other"],
        "model.start_level: the backbone gives 2 maps, got 4",
    ),
    "classifier": (
        ["eval.py", "--checkpoint", "FOLDER/classifier.ckpt"],
        "classifier.ckpt: not of this model; 62 missing: backbone.patch_embeds.0.proj.weight",
    ),
    "unknown outputs": (["export.py", "--outputs", "labels"], "a model of detection gives candidates or detections"),
    "any number of images": (["export.py", "--dynamic-batch"], "--dynamic-batch: a detector is exported for one numb"),
}


@pytest.mark.parametrize(("command", "expected"), REFUSALS.values(), ids=REFUSALS.keys())
def test_bad_input_is_one_line(options, run_script, command, expected):
    folder = options[-1].removeprefix("runtime.output=").removesuffix("/run")
    script, *own = (part.replace("FOLDER", folder) for part in command)
    code, _, err = run_script(script, *options, *own)
    assert code == 1
    assert expected in err
    assert err.startswith(f"{script}: error: ")
    assert err.count("\n") == 1
