"""report.html and compare.html: they hold what the files say, and a real browser shows them without complaint."""

import json
import os
import re
import shutil
import subprocess
import sys

import mindspore
import numpy as np
import pytest

from focal_twins.config.load import load_config
from focal_twins.data.open_images import open_images
from focal_twins.data.pack_mindrecord import make_mindrecord
from focal_twins.data.transforms import Preprocessing
from focal_twins.inference.trained import open_model
from focal_twins.pages.page import Section
from focal_twins.pages.page import page as write_page
from focal_twins.reporting.comparison import Comparison, short_names
from focal_twins.reporting.run_files import read_run
from focal_twins.reporting.run_report import LISTED_UPDATES, report_or_warn, report_page, write_report
from focal_twins.tasks.classification.confusion import DRAWN_CLASSES, drawn_classes
from focal_twins.tasks.classification.evaluation_report import CONFUSED_IMAGES, CONFUSED_PAIRS
from focal_twins.tasks.classification.predictor import Classifier, predict
from tests.chromium import needs_chromium, opened
from tests.conftest import DIGITS_CONFIG, ROOT
from tests.processes import train_command
from tests.report_pages import UPDATE_KEYS, Page, assert_page_is_of, column, lines
from tests.runs import evaluate_run, lines_of, write_images, write_run

# --- a run of train.py ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(digits, shared_graphs, tmp_path_factory):
    """A run of two epochs by train.py: its folder and what was printed."""
    folder = tmp_path_factory.mktemp("runs") / "first <run>"
    options = ["train.epochs=2", "train.log_interval=5", "train.batch_size=96", "eval.batch_size=120", shared_graphs]
    done = subprocess.run(
        [sys.executable, *train_command(digits, folder, *options)],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"GLOG_v": "4"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_training_ends_with_a_report_of_its_files(run):
    folder, out = run
    assert out.splitlines()[-1] == f"report: {folder / 'report.html'}"
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert_page_is_of(page, folder)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    matrix = [[int(cell) for cell in row[1:11]] for row in page.tables["confusion"][1:]]
    assert matrix == evaluation["confusion"]
    examples = [name for pair in evaluation["most_confused"] for name in pair["images"]]
    assert [image["alt"] for image in page.images] == examples
    assert examples  # a network of two epochs makes mistakes
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.images)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    session = dict(row for row in page.tables["session-1"][1:])
    assert session["mindspore"] == mindspore.__version__
    assert session["command"].startswith("python train.py --config")
    assert f"base_lr: {load_config(folder / 'config.yaml').optimizer.base_lr}" in text
    assert "first &lt;run&gt;" in text and "<run>" not in text


def test_examples_are_images_of_their_classes_taken_for_the_other(run, digits):
    """As the checkpoint, asked again about each file, says."""
    folder, _ = run
    pairs = json.loads((folder / "evaluation.json").read_text())["most_confused"]
    model = open_model(str(folder / "checkpoints" / "best.ckpt"))
    classifier = Classifier(model.answer, Preprocessing.from_dict(model.preprocessing), None, model.classes)
    assert [pair["count"] for pair in pairs] == sorted((pair["count"] for pair in pairs), reverse=True)
    for pair in pairs:
        assert len(pair["images"]) == min(pair["count"], CONFUSED_IMAGES)
        assert all(name.startswith(f"{pair['label']}/") and (digits / "val" / name).exists() for name in pair["images"])
        paths = [str(digits / "val" / name) for name in pair["images"]]
        for prediction in predict(classifier, paths, batch_size=CONFUSED_IMAGES, workers=1):
            assert classifier.classes[prediction.top(1)[0][0]] == pair["predicted"]


def test_a_finished_run_s_report_is_made_again_and_its_failure_is_one_line(run, run_script, tmp_path):
    """The run is done all the same: exit code 0."""
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder, ignore=shutil.ignore_patterns("report.html"))
    options = ["--config", folder / "config.yaml", "train.resume=auto", f"runtime.output={folder}"]
    code, out, err = run_script("train.py", *options)
    assert (code, err) == (0, "")
    assert out.endswith(f"report: {folder / 'report.html'}\n")
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    code, out, err = run_script("train.py", *options)
    assert (code, "report:" in out) == (0, False)
    assert err == (
        f"warning: no report: {folder / 'report.html'}: cannot be written (Is a directory); "
        f"python scripts/report.py {folder} makes it again\n"
    )


def test_a_defect_of_the_report_is_one_line_too(written, monkeypatch, capsys):
    monkeypatch.setattr("focal_twins.reporting.run_report.report_page", lambda *_: 1 / 0)
    report_or_warn(written("run", lines_of(1)))
    assert capsys.readouterr().err.startswith("warning: no report: division by zero; python scripts/report.py ")


# --- in a browser -----------------------------------------------------------------------------------------------------

POINT = """
const chart = document.querySelector("figure.chart .plot svg"), box = chart.getBoundingClientRect();
chart.dispatchEvent(new PointerEvent("pointermove", {clientX: box.right - 1, clientY: box.top + 9}));
document.body.append(Object.assign(document.createElement("p"), {id: "pointed", textContent:
  chart.parentElement.querySelector(".tip").innerText}));
chart.dispatchEvent(new KeyboardEvent("keydown", {key: "PageUp"}));
document.body.append(Object.assign(document.createElement("p"), {id: "keyed", textContent:
  chart.parentElement.querySelector(".tip").innerText}));
"""


@pytest.fixture
def opened_page(tmp_path):
    """opened_page(file) opens a page, points at its first chart's end and goes to its begin by keys: the page, and what
    the chart told at both places. No line may be on the console: of scripts, or of what the page's policy forbids."""

    def open_it(path):
        pointing = tmp_path / "pointing.html"
        pointing.write_text(path.read_text().replace("</body>", f"<script>{POINT}</script></body>"))
        text, console = opened(pointing, tmp_path / "profile")
        assert console == []
        told = [re.search(f'<p id="{name}">([^<]*)', text).group(1) for name in ("pointed", "keyed")]
        return Page(text), told

    return open_it


@pytest.mark.browser
@needs_chromium
def test_report_in_a_browser(run, opened_page):
    folder, _ = run
    page, (last, first) = opened_page(folder / "report.html")
    assert_page_is_of(page, folder)
    _, evaluations = lines(folder)
    for told, (raw, ema) in ((last, evaluations[-2:]), (first, evaluations[:2])):
        assert told.startswith(f"{raw['epoch']} epochs")
        values = [float(value) for value in re.findall(r": ([\d.]+)", told)]
        assert values == pytest.approx([raw["top1"], ema["top1"]], rel=1e-6)


@pytest.mark.browser
@needs_chromium
def test_comparison_in_a_browser(run, written, run_script, tmp_path, opened_page):
    folder, _ = run
    other = written("other", lines_of(3.5), "optimizer.base_lr=1e-3")
    code, _, err = run_script("scripts/compare_runs.py", folder, other, "--output", tmp_path / "compare.html")
    assert (code, err) == (0, "")
    page, (last, _) = opened_page(tmp_path / "compare.html")
    assert [row[0] for row in page.tables["figures"][1:]] == [folder.name, "other"]
    assert last.startswith("3 epochs") and "other, EMA" in last
    assert folder.name not in last  # its two epochs end before


@pytest.mark.browser
@needs_chromium
def test_the_browser_reports_what_is_wrong(tmp_path):
    """Else an empty console would mean nothing."""
    page = tmp_path / "bad.html"
    page.write_text("<!DOCTYPE html><body><script>nothing.at.all</script><img src='https://example.org/a.png'></body>")
    assert "ReferenceError" in opened(page, tmp_path / "profile")[1][0]
    policed = write_page("x", "", [Section("x", '<img src="https://example.org/a.png">')])
    page.write_text(policed)
    assert "Content Security Policy" in opened(page, tmp_path / "profile")[1][0]


# --- runs written by hand ---------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    """written(name, lines, overrides...) writes a run's folder whose data are in tmp_path/data."""

    def write(name, content, *overrides, summary=True):
        places = [f"data.path={tmp_path / 'data'}", f"runtime.output={tmp_path / name}"]
        config = load_config(DIGITS_CONFIG, [*places, *overrides])
        return write_run(tmp_path / name, content, config, summary)

    return write


def test_top_5_of_few_classes_is_not_shown(written):
    """Of five classes it is always 100%."""
    for name, classes, shown in (("few", 5, False), ("more", 6, True)):
        folder = written(name, lines_of(1), f"model.num_classes={classes}")
        assert ("top-5" in report_page(read_run(folder))) == shown


def test_report_of_a_run_that_was_interrupted(written, run_script, tmp_path):
    """In its second epoch, while a line was being written; with values that are not finite."""
    folder = written("run", lines_of(1.6), summary=False)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "upd')
    code, out, err = run_script("scripts/report.py", folder)
    assert (code, out, err) == (0, f"{folder / 'report.html'}\n", "")
    text = (folder / "report.html").read_text()
    assert "1.5 of 28 epochs in 0:14, not at its end" in text
    assert "No whole epoch was evaluated yet." in text
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines_of(1.6)))
    assert_page_is_of(Page(text), folder)
    for name in ("config.yaml", "sessions.jsonl"):
        (folder / name).unlink()
    (folder / "metrics.jsonl").write_text("")
    assert run_script("scripts/report.py", folder)[0] == 0
    assert "Nothing was logged yet." in (folder / "report.html").read_text()


def test_a_run_that_has_logged_nothing_yet_is_a_run(written, run_script, tmp_path):
    """It has a configuration and a session, and no metrics.jsonl."""
    folder = written("run", lines_of(1), summary=False)
    (folder / "metrics.jsonl").unlink()
    code, _, err = run_script("scripts/report.py", folder)
    assert (code, err) == (0, "")
    text = (folder / "report.html").read_text()
    assert "Training run, begun." in text and "Nothing was logged yet." in text
    assert "session-1" in Page(text).tables
    other = written("other", lines_of(2), "optimizer.base_lr=1e-3")
    code, _, err = run_script("scripts/compare_runs.py", folder, other, "--output", tmp_path / "c.html")
    assert (code, err) == (0, "")
    page = Page((tmp_path / "c.html").read_text())
    assert page.tables["figures"][1] == ["run", *["-"] * 8]
    assert [row[0] for row in page.tables["differences"][1:]] == ["optimizer.base_lr"]


def test_many_classes_and_a_long_run_stay_readable(written, tmp_path):
    """Of everything there is a bounded part, and of the matrix the rows add up to what was counted."""
    write_images(tmp_path / "data", classes=120, each=4)
    images = open_images(tmp_path / "data", "val")
    generator = np.random.default_rng(0)
    predicted = np.where(generator.random(images.size) < 0.7, images.labels, generator.integers(0, 120, images.size))
    predicted[8:12] = [120, 77, 77, 77]  # an image without a prediction, and most of a class for one other
    folder = written("run", lines_of(60, 100))
    evaluation = evaluate_run(folder, images, predicted)
    page = Page(write_report(folder).read_text())
    head, *rows = page.tables["confusion"]
    assert DRAWN_CLASSES - 1 <= len(rows) <= DRAWN_CLASSES  # pairs come whole
    names = [row[0] for row in rows]
    assert head == ["", *names, "other classes", "no prediction", "images"]
    assert {"class 0002", "class 0077"} <= set(names)
    drawn = [images.classes.index(name) for name in names]
    for label, row in zip(drawn, rows, strict=True):
        taken_for = predicted[images.labels == label].tolist()
        shown = [taken_for.count(other) for other in drawn]
        without = taken_for.count(120)
        assert [int(cell) for cell in row[1:]] == [*shown, 4 - sum(shown) - without, without, 4]
    assert evaluation["most_confused"][0] == {
        "label": "class 0002",
        "predicted": "class 0077",
        "count": 3,
        "images": [f"class 0002/{number}.png" for number in (1, 2, 3)],
    }
    assert len(evaluation["most_confused"]) == CONFUSED_PAIRS
    examples = [name for pair in evaluation["most_confused"] for name in pair["images"]]
    assert len(examples) >= CONFUSED_PAIRS + 2
    assert [image["alt"] for image in page.images] == examples
    assert len(page.tables["classes"]) == 122  # with the head and the means
    updates, _ = lines(folder)
    assert len(updates) > LISTED_UPDATES
    assert page.tables["updates"][1:] == column([line for line in updates if line["update"] % 100 == 0], UPDATE_KEYS)
    assert len(page.charts["Gradient norm"]["series"][0]["y"]) == len(updates)


def test_images_that_are_gone_moved_or_damaged(written, run_script, tmp_path):
    write_images(tmp_path / "data", classes=3, each=2)
    images = open_images(tmp_path / "data", "val")
    folder = written("run", lines_of(2))
    evaluate_run(folder, images, np.array([1, 1, 1, 1, 2, 2]))
    names = ["class 0000/0.png", "class 0000/1.png"]
    for pair in (content := json.loads((folder / "evaluation.json").read_text()))["most_confused"]:
        pair["images"].append("class 0000/\udcff.png")  # a name that is not UTF-8
    (folder / "evaluation.json").write_text(json.dumps(content))
    (tmp_path / "data").rename(tmp_path / "moved")
    text = write_report(folder).read_text()
    assert text.count("image not found") == 3
    assert Page(text).images == []
    (tmp_path / "moved" / "val" / names[1]).write_bytes(b"no image")
    code, _, err = run_script(
        "scripts/report.py", folder, "--data", tmp_path / "moved", "--output", tmp_path / "p.html"
    )
    assert (code, err) == (0, "")
    text = (tmp_path / "p.html").read_text()
    assert [image["alt"] for image in Page(text).images] == names[:1]
    assert "not an image" in text
    code, _, err = run_script("scripts/report.py", folder, "--data", tmp_path / "typo")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(f"report.py: error: data folder {tmp_path / 'typo' / 'val'}: no such folder")


@pytest.mark.parametrize(("damage", "missing"), [("all of it", 2), ("images", 2), ("nothing", 0)])
def test_a_damaged_mindrecord_costs_pictures_alone(written, tmp_path, damage, missing):
    """MindSpore refuses the whole file, or an image of it."""
    write_images(tmp_path / "folder", classes=3, each=2)
    make_mindrecord(tmp_path / "folder", "val", tmp_path / "data", images_per_file=100, workers=1)
    folder = written("run", lines_of(2))
    evaluate_run(folder, open_images(tmp_path / "data", "val"), np.array([1, 1, 1, 1, 2, 2]))
    (packed,) = (tmp_path / "data").glob("val.mindrecord00000")
    size = packed.stat().st_size
    with open(packed, "r+b") as file:  # its pages of images follow those of names
        file.seek({"all of it": 0, "images": size // 2, "nothing": size}[damage])
        file.write(bytes(size - file.tell()))
    text = write_report(folder).read_text()
    assert text.count("image not found") == missing
    assert len(Page(text).images) == 2 - missing


def test_bad_input_is_one_line(written, run_script, tmp_path):
    good = written("good", lines_of(1))
    damaged = written("damaged", lines_of(1))
    (damaged / "metrics.jsonl").write_text('{"epoch": 1\n')
    older = written("older", [{"epoch": 1, "update": 5, "loss": 1.0}], summary=False)
    half = written("half", lines_of(1))
    (half / "evaluation.json").write_text("{")
    listed = written("listed", lines_of(1))
    (listed / "config.yaml").write_text("- a")
    for arguments, message in (
        ([tmp_path / "none"], "none: no folder of a run (it has neither config.yaml nor metrics.jsonl)"),
        ([damaged], "damaged/metrics.jsonl: cannot be read (Expecting"),
        (
            [older],
            "older/metrics.jsonl: line 1 lacks epochs_done, grad_norm, images_per_second, loss_scale, lr, seconds",
        ),
        ([listed], "listed/config.yaml: cannot be read (it has no sections)"),
        ([half], "half/evaluation.json: cannot be read (Expecting"),
        ([good, "--output", good / "metrics.jsonl" / "x.html"], "x.html: cannot be written (File exists)"),
    ):
        for script in ("report.py", "compare_runs.py"):
            code, _, err = run_script(f"scripts/{script}", *arguments)
            assert (code, err.count("\n")) == (1, 1)
            assert err.startswith(f"{script}: error: ") and message in err
    code, _, err = run_script("scripts/compare_runs.py", good, f"{good}/")
    assert (code, err) == (1, f"compare_runs.py: error: {good}: is given twice\n")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("evaluation.json", {"top1": None, "count": None}, " lacks count, top1; was it written by this version?"),
        ("evaluation.json", {"classes": [{"name": "a"}]}, ": entry 1 of classes lacks accuracy, correct, count;"),
        ("evaluation.json", {"most_confused": [{"count": 1}]}, ": entry 1 of most_confused lacks images, label, pred"),
        ("evaluation.json", {"confusion": [[1, 2], [3]]}, ": its confusion matrix is not of its 3 classes"),
        ("sessions.jsonl", {"git": None, "cores": None}, ": line 1 lacks cores, git;"),
        ("summary.json", {"updates": None}, " lacks updates;"),
    ],
)
def test_a_file_without_what_is_needed_is_one_line(written, run_script, tmp_path, name, changes, message):
    """`changes` of a good file; None takes a key out of it."""
    write_images(tmp_path / "data", classes=3, each=1)
    folder = written("run", lines_of(1))
    evaluate_run(folder, open_images(tmp_path / "data", "val"), np.array([0, 0, 2]))
    content = json.loads((folder / name).read_text()) | changes
    for key in [key for key, value in changes.items() if value is None]:
        del content[key]
    (folder / name).write_text(json.dumps(content) + "\n")
    code, _, err = run_script("scripts/report.py", folder)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(f"report.py: error: {folder / name}{message}")


def test_comparison_tells_what_runs_came_to_and_differ_in(written, run_script, tmp_path):
    a = written("group/a", lines_of(4), "train.epochs=4")
    b = written("group/b", [line for line in lines_of(2.5) if line.get("weights") != "ema"], "augment.mixup=0.8",
                "train.epochs=4", summary=False)  # fmt: skip
    code, out, err = run_script("scripts/compare_runs.py", a, b, "--output", tmp_path / "new" / "c.html")
    assert (code, err) == (0, "")
    page = Page((tmp_path / "new" / "c.html").read_text())
    of_a, of_b = page.tables["figures"][1:]
    best = max(line["top1"] for line in lines(a)[1] if line["weights"] == "ema")
    assert of_a[:5] == ["a", 4.0, best, "EMA", 4.0]
    raw = lines(b)[1]
    assert of_b == ["b", 2.5, raw[-1]["top1"], "raw", 2.0, raw[-1]["top1"], "-", "0:18",
                    np.median([u["images_per_second"] for u in lines(b)[0][1:]])]  # fmt: skip
    assert page.tables["differences"][1:] == [["augment.mixup", "0.0", "0.8"]]
    for told in (f"a    4       {best:.2f}", "augment.mixup  0.0  0.8", f"curves: {tmp_path / 'new' / 'c.html'}"):
        assert told in out
    assert page.charts["Top-1 against time"]["xLabel"] == "seconds"
    names = [series["name"] for series in page.charts["Top-1"]["series"]]
    assert names == ["a, raw", "a, EMA", "b, raw"]
    drawn = [(series.color, series.dashed) for series in Comparison.of([a, b]).charts()[0].series]
    assert drawn == [(0, True), (0, False), (1, True)]
    alike = Comparison.of([a, written("c", lines_of(1), "train.epochs=4")])
    assert alike.differences() == []
    assert "the configurations are the same" in alike.text()


def test_the_best_is_that_of_training(written):
    """The first of the highest; an evaluation within an epoch does not count."""
    content = [line for line in lines_of(3) if line.get("weights") == "ema"]
    for line, top1 in zip(content, (50.0, 70.0, 70.0), strict=True):
        line["top1"] = top1
    within = content[-1] | {"epoch": 4, "epochs_done": 3.5, "top1": 90.0}
    run = read_run(written("run", [*content, within]))
    assert (run.best["epoch"], run.best["top1"]) == (2, 70.0)
    assert run.last("ema")["top1"] == 90.0


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    assert short_names([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    assert short_names([tmp_path / "x" / "a", tmp_path / "y" / "b"]) == ["a", "b"]


def test_drawn_classes_are_those_confused_most():
    few = np.eye(DRAWN_CLASSES, dtype=int)
    assert drawn_classes(few).tolist() == list(range(DRAWN_CLASSES))
    many = np.eye(300, dtype=int) * 50
    assert drawn_classes(many).tolist() == []
    many[250, 7], many[7, 250], many[3, 7] = 9, 8, 1
    assert drawn_classes(many).tolist() == [3, 7, 250]
    many[100:200, 0] = 5
    chosen = drawn_classes(many)
    assert len(chosen) <= DRAWN_CLASSES and {0, 7, 250} <= set(chosen.tolist())
