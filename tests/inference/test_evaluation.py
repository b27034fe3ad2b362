"""Counting: every image once, whatever the batches; what the counts are of; and the report of them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support

from focal_twins.config.load import load_config
from focal_twins.data.dataset import DataError
from focal_twins.distributed.ranks import Dist
from focal_twins.errors import UserError
from focal_twins.files.weights import CLASSES, write_checkpoint
from focal_twins.inference.evaluate import evaluate_checkpoint
from focal_twins.inference.export import export_checkpoint
from focal_twins.inference.exported import ExportedModel
from focal_twins.inference.trained import TrainedModel
from focal_twins.tasks import task
from focal_twins.tasks.classification.evaluation_report import worst_classes
from focal_twins.tasks.classification.evaluator import ClassificationEvaluator
from focal_twins.tasks.classification.label_maps import LabelSpace
from focal_twins.tasks.classification.metrics import Metrics, Scoring, batch_counts, predictions
from focal_twins.tasks.classification.task import Classification
from focal_twins.tasks.evaluation_file import evaluation_path, write_evaluation
from tests.conftest import DIGITS_CONFIG, TOY_MODEL
from tests.trained import write_digits_checkpoint

THREE = LabelSpace.of_names("abc", "abc")


def evaluate(network, batches, batch_size, dist, scoring) -> Metrics:
    """The metrics of one pass."""
    evaluator = ClassificationEvaluator(scoring, None, None, (1, 5), dist, batch_size)
    return task.evaluate(network, batches, evaluator).metrics


def test_counts_equal_their_definition():
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((40, 12)).astype(np.float32)
    labels = generator.integers(0, 12, 40)
    weights = (generator.random(40) < 0.8).astype(np.float32)
    count, top1, top5, loss = batch_counts(logits, labels, weights)
    order = np.argsort(-logits, axis=1)
    kept = weights > 0
    assert count == kept.sum()
    assert top1 == (order[:, 0] == labels)[kept].sum()
    assert top5 == (order[:, :5] == labels[:, None]).any(axis=1)[kept].sum()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(loss, -np.log(probabilities[np.arange(40), labels])[kept].sum(), rtol=1e-6)


def test_logits_that_are_not_finite_are_never_right():
    logits = np.full((2, 3), np.nan, np.float32)
    assert batch_counts(logits, np.array([0, 1]), np.ones(2))[1:3].tolist() == [0, 0]


def test_equal_logits_are_never_right():
    """A network that answers alike for everything knows nothing, whatever the order of classes."""
    counts = batch_counts(np.zeros((10, 6), np.float32), np.arange(10) % 6, np.ones(10))
    assert counts[1:3].tolist() == [0, 0]


def test_large_logits_do_not_overflow_the_loss():
    counts = batch_counts(np.array([[1e4, 0.0]], np.float32), np.array([1]), np.ones(1))
    assert counts[3] == pytest.approx(1e4)


def test_predictions_are_unique_highest_logits():
    logits = np.array([[1, 3, 2], [3, 1, 3], [np.nan, 1, 2], [np.inf, 1, 2], [-np.inf, 1, 2], [0, 0, 0], [5, 5, 9]])
    assert predictions(logits.astype(np.float32)).tolist() == [1, 3, 3, 3, 3, 3, 2]


def test_fewer_than_five_classes_are_all_among_the_five():
    logits = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert batch_counts(logits, np.array([2, 2]), np.ones(2))[:3].tolist() == [2, 1, 2]


class FirstPixels(nn.Cell):
    """Logits are the first three pixels; refuses batches of another size than 4, as a compiled graph would."""

    def construct(self, images):
        assert images.shape[0] == 4
        return images.reshape((4, -1))[:, :3]


def batches_of(images, labels, weights=None):
    """Batches of four, as eval_dataset gives them."""
    weights = np.ones(len(labels), np.float32) if weights is None else weights
    starts = range(0, len(labels), 4)
    return [tuple(x[i : i + 4] for x in (images, labels, weights, np.arange(len(labels)))) for i in starts]


def pixels_of(logits):
    """Images [n, 1, 1, 5] of which FirstPixels makes the logits [n, 3]; mirrored, the last three in reverse."""
    logits = np.asarray(logits, np.float32)
    return np.concatenate([logits, np.zeros((len(logits), 2), np.float32)], axis=1).reshape(-1, 1, 1, 5)


def test_a_short_last_batch_counts_in_full_and_alone():
    generator = np.random.default_rng(0)
    images = generator.standard_normal((10, 1, 2, 2)).astype(np.float32)
    labels = images.reshape(10, -1)[:, :3].argmax(axis=1)
    labels[:3] = (labels[:3] + 1) % 3
    batches = batches_of(images, labels)
    network = FirstPixels().set_train()
    metrics = evaluate(network, batches, 4, Dist(), Scoring(THREE, 10))
    assert (metrics.count, metrics.top1_correct, metrics.top5_correct) == (10, 7, 10)
    assert metrics.top1 == pytest.approx(70)
    assert network.training
    shards = [evaluate(network, [batch], 4, Dist(), Scoring(THREE, 10)) for batch in batches]
    assert sum(shard.count for shard in shards) == 10
    assert sum(shard.loss_sum for shard in shards) == pytest.approx(metrics.loss_sum)
    np.testing.assert_array_equal(sum(shard.confusion for shard in shards), metrics.confusion)


@dataclass(frozen=True)
class OneOfSeveral(Dist):
    """A process whose sums with the others are known beforehand; until then they are its own parts."""

    parts: list[np.ndarray] = field(default_factory=list)
    totals: Iterator[np.ndarray] | None = None

    def sum(self, values):
        self.parts.append(np.array(values))
        return next(self.totals) if self.totals else values


def evaluate_on_ranks(network, shares, scoring):
    """The metrics that each of several processes ends with, of their shares of the batches."""
    alone = [OneOfSeveral(rank, len(shares)) for rank in range(len(shares))]
    for dist, batches in zip(alone, shares, strict=True):
        evaluate(network, batches, 4, dist, scoring)
    totals = [sum(parts) for parts in zip(*(dist.parts for dist in alone), strict=True)]
    return [
        evaluate(network, batches, 4, OneOfSeveral(rank, len(shares), totals=iter(totals)), scoring)
        for rank, batches in enumerate(shares)
    ]


@pytest.mark.parametrize("ranks", [1, 3])
def test_counts_of_101_images_equal_brute_force(ranks):
    """On every rank. Ties, NaN and images that do not count among them; the confusion's diagonal is top-1's count."""
    generator = np.random.default_rng(1)
    logits = generator.integers(0, 4, (101, 3)).astype(np.float32)
    logits[generator.random(101) < 0.1, 1] = np.nan
    labels = generator.integers(0, 3, 101)
    weights = (generator.random(101) < 0.9).astype(np.float32)
    valid = [frozenset(np.flatnonzero(generator.random(3) < 0.4).tolist()) for _ in range(101)]
    batches = batches_of(pixels_of(logits), labels, weights)
    shares = [batches[rank::ranks] for rank in range(ranks)]
    found = evaluate_on_ranks(FirstPixels(), shares, Scoring(THREE, len(valid), valid))
    confusion, real, predicted = np.zeros((3, 4), int), [0, 0], []
    for row, label, weight, classes in zip(logits, labels, weights, valid, strict=True):
        best = [c for c in range(3) if all(row[c] > row[other] for other in range(3) if other != c)]
        prediction = best[0] if best and not np.isnan(row).any() else 3
        confusion[label, prediction] += int(weight)
        predicted.append(prediction if weight else -1)
        if weight and classes:
            real = [real[0] + 1, real[1] + (prediction in classes)]
    assert confusion[:, 3].sum() > 10
    for metrics in found:
        np.testing.assert_array_equal(metrics.confusion, confusion)
        assert metrics.predicted.tolist() == predicted
        assert metrics.count == confusion.sum() == weights.sum() < 101
        assert metrics.top1_correct == confusion.trace()
        assert (metrics.real_count, metrics.real_correct) == tuple(real)
        counts, correct = metrics.per_class
        assert counts.tolist() == [weights[labels == c].sum() for c in range(3)]
        assert correct.tolist() == confusion.diagonal().tolist()


def test_valid_labels_by_hand():
    """Right, right by the second label, wrong, without valid labels, tied."""
    logits = [[9, 0, 0], [0, 9, 0], [0, 0, 9], [9, 0, 0], [9, 9, 0]]
    valid = [frozenset(x) for x in ([0], [0, 1], [0], [], [0, 1])]
    batches = batches_of(pixels_of(logits), np.zeros(5, int))
    metrics = evaluate(FirstPixels(), batches, 4, Dist(), Scoring(THREE, len(valid), valid))
    assert (metrics.real_count, metrics.real_correct, metrics.top1_correct) == (4, 2, 2)
    assert metrics.real == pytest.approx(50)
    assert str(metrics).endswith("(5 images)  real 50.00%  (4 images)")
    plain = evaluate(FirstPixels(), batches, 4, Dist(), Scoring(THREE, 10))
    assert plain.real is None
    assert "real" not in str(plain)


def test_top_5_is_shown_where_it_says_something():
    """Of five classes or fewer, the five most likely are all; files have the figure all the same."""
    for classes, shown in ((5, False), (6, True)):
        counts = np.zeros((classes, classes + 1), int)
        assert ("top-5" in str(Metrics(9, 3, 9, 1.0, counts, np.zeros(9, int)))) == shown
        figures = Classification.shown_figures({"model": {"num_classes": classes}})
        assert [f.key for f in figures] == (["top1", "top5", "loss"] if shown else ["top1", "loss"])
    assert Classification.shown_figures({}) == Classification.figures  # of a run whose configuration does not say


def test_classes_outside_the_map_are_no_answers():
    """Of outputs 0, 1, 2 the folders are 2 and 0: output 1, though the highest, is not to be chosen."""
    space = LabelSpace.of({"x": 2, "y": 0}, ("x", "y"), ("zero", "one", "two"), 3)
    logits = [[1, 9, 5], [5, 9, 1], [5, 9, 1]]
    valid = [frozenset([2]), frozenset([0]), frozenset([1])]
    batches = batches_of(pixels_of(logits), np.array([0, 1, 0]))
    metrics = evaluate(FirstPixels(), batches, 4, Dist(), Scoring(space, 3, valid))
    assert metrics.confusion.tolist() == [[1, 0, 0], [1, 1, 0]]
    assert (metrics.count, metrics.top1_correct, metrics.real_correct) == (3, 2, 2)
    expected = -np.log([1 / (1 + np.exp(-4)), 1 / (1 + np.exp(-4)), 1 / (1 + np.exp(4))]).sum()
    assert metrics.loss_sum == pytest.approx(expected, rel=1e-5)


def test_flip_averages_logits_with_those_of_the_mirror_image():
    images = np.random.default_rng(2).standard_normal((10, 1, 1, 5)).astype(np.float32)
    labels = np.arange(10) % 3
    flat = images.reshape(10, 5)
    averaged = (flat[:, :3] + flat[:, :1:-1]) / 2
    flipped, by_hand = (
        evaluate(FirstPixels(), batches_of(x, labels), 4, Dist(), Scoring(THREE, 10, flip=flip))
        for x, flip in ((images, True), (pixels_of(averaged), False))
    )
    np.testing.assert_array_equal(flipped.confusion, by_hand.confusion)
    assert flipped.loss_sum == pytest.approx(by_hand.loss_sum)
    assert flipped.loss_sum != pytest.approx(
        evaluate(FirstPixels(), batches_of(images, labels), 4, Dist(), Scoring(THREE, 10)).loss_sum
    )


def test_one_graph_serves_all_batches():
    """The short one too, and the mirrored."""
    images = np.zeros((10, 1, 1, 5), np.float32)
    network, mode = FirstPixels(), ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        evaluate(network, batches_of(images, np.zeros(10, int)), 4, Dist(), Scoring(THREE, 10, flip=True))
    finally:
        ms.set_context(mode=mode)
    assert len(network.compile_cache) == 1


class ThreeRanks(Dist):
    """Sums as three equal ranks would, in float32."""

    def sum(self, values):
        return sum(np.asarray(values, np.float32) for _ in range(3))


def test_counts_beyond_float32_are_summed_exactly():
    counts = np.array([0, 1, 2**24 + 1, 2**33 + 12345, 65535, 65536], np.int64)
    assert ThreeRanks(size=3).sum_counts(counts).tolist() == (3 * counts).tolist()
    assert Dist().sum_counts(counts).tolist() == counts.tolist()


def test_ranks_add_up_and_one_without_images_takes_part():
    batches = batches_of(pixels_of([[9, 0, 0], [0, 9, 0]]), np.zeros(2, int))
    metrics = evaluate(FirstPixels(), batches, 4, ThreeRanks(size=3), Scoring(THREE, 10))
    assert (metrics.count, metrics.confusion[0].tolist()) == (6, [3, 3, 0, 0])
    empty = evaluate(FirstPixels(), [], 4, Dist(), Scoring(THREE, 0, []))
    assert (empty.count, empty.top1, empty.real, empty.confusion.shape) == (0, 0, 0, (3, 4))


def metrics_of(matrix):
    confusion = np.array(matrix)
    confusion = np.concatenate([confusion, np.zeros((len(confusion), 1), int)], axis=1)
    return Metrics(int(confusion.sum()), int(confusion.trace()), int(confusion.sum()), 1.0, confusion, np.zeros(0))


def test_scores_of_classes_are_those_of_scikit_learn():
    """With ties, which are no prediction, a class that nothing is taken for, and one that has no images."""
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 4, 200)  # none of class 4
    predicted = np.where(generator.random(200) < 0.6, labels, generator.integers(0, 6, 200))
    predicted[predicted == 2] = 5  # one past the last class: no prediction
    confusion = np.zeros((5, 6), int)
    np.add.at(confusion, (labels, predicted), 1)
    metrics = Metrics(200, int(confusion.trace()), 200, 1.0, confusion, predicted)
    expected = precision_recall_fscore_support(labels, predicted, labels=range(5), zero_division=np.nan)
    for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
        np.testing.assert_allclose(getattr(metrics.scores, name), 100 * values, err_msg=name)
    assert np.isnan(metrics.scores.precision[2]) and metrics.scores.f1[2] == 0
    assert np.isnan(metrics.scores.recall[4]) and metrics.scores.f1[4] == 0
    macro = precision_recall_fscore_support(labels, predicted, labels=range(5), average="macro", zero_division=0)
    found = metrics.scores.macro()
    assert [found["precision"], found["recall"], found["f1"]] == pytest.approx([100 * value for value in macro[:3]])
    assert found["classes"] == 5
    assert metrics_of(np.zeros((2, 2), int)).scores.macro() == dict.fromkeys(("precision", "recall", "f1")) | {
        "classes": 0
    }


def test_the_five_worst_classes_are_named():
    matrix = np.diag([10, 9, 8, 7, 6, 5, 4])
    matrix[:, 0] += 10 - matrix.sum(axis=1)
    line = worst_classes(metrics_of(matrix), tuple("abcdefg"))
    assert line == (
        "worst classes: g (40.00% of 10), f (50.00% of 10), e (60.00% of 10), d (70.00% of 10), c (80.00% of 10)"
    )
    assert worst_classes(metrics_of([[1, 0, 0], [0, 0, 0], [0, 0, 2]]), tuple("abc")) is None
    assert worst_classes(metrics_of([[1, 1], [0, 1]]), tuple("ab")) is None


def test_reports_lie_in_the_run_or_beside_the_file(tmp_path):
    val, share = (SimpleNamespace(path=tmp_path / name, is_held_back=name == "train") for name in ("val", "train"))
    best = tmp_path / "run/checkpoints/best.ckpt"
    assert evaluation_path(best, "ema", val) == tmp_path / "run/eval_best_ema_val.json"
    assert evaluation_path(best, "ema", share) == tmp_path / "run/eval_best_ema_train_held_back.json"
    assert evaluation_path(tmp_path / "tiny.pth", "raw", val) == tmp_path / "eval_tiny_raw_val.json"


def test_a_large_confusion_matrix_is_a_file_beside_the_report(tmp_path):
    for classes in (100, 101):
        confusion = np.arange(classes * (classes + 1)).reshape(classes, classes + 1)
        write_evaluation(tmp_path / f"{classes}.json", {"top1": 1.0}, {"confusion": confusion[:, :-1]})
        content = json.loads((tmp_path / f"{classes}.json").read_text())
        matrix = content["confusion"] if classes == 100 else np.load(tmp_path / content["confusion"])
        np.testing.assert_array_equal(matrix, confusion[:, :-1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["100.json", "101.json", "101_confusion.npy"]


# --- whole evaluations ----------------------------------------------------------------------------------------------

CLASSES_OF_MODEL = ("0", "1", "2", "10")  # by output


class Scanner(nn.Cell):
    """A model of four outputs: the first four pixels of the first row."""

    num_classes, img_size = 4, (8, 8)

    def construct(self, images):
        return images[:, 0, 0, :4]


def draw(folder, name, levels):
    """An image whose first pixels have the levels given."""
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0, : len(levels)] = levels
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


class NotFinite(Scanner):
    """A network that has diverged."""

    def construct(self, images):
        return images[:, 0, 0, :4] * float("nan")


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """setting(class names, overrides...) evaluates Scanner on tmp_path/val: the metrics, and the report."""
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()

    def run(names, *overrides, json_path=None, config=DIGITS_CONFIG, network=Scanner):
        options = [f"data.path={tmp_path}", "data.mean=[0.0]", "data.std=[1.0]", "eval.batch_size=4", "data.workers=1"]
        config = load_config(config, [*options, *overrides])
        trained = TrainedModel(config, network(), "raw", names)
        monkeypatch.setattr("focal_twins.inference.evaluate.load_for_inference", lambda *_: trained)
        metrics = evaluate_checkpoint(config, Dist(), str(checkpoint), json_path=json_path).metrics
        path = json_path or tmp_path / "run" / "eval_best_raw_val.json"
        return metrics, json.loads(path.read_text()) if path.is_file() else None

    return run


def numbered(path):
    """Five images in folders called like numbers; of "10", one is right, one is taken for a 2."""
    draw(path / "0", "ILSVRC2012_val_00000001.JPEG.png", [200, 0, 0, 0])
    draw(path / "1", "ILSVRC2012_val_00000002.png", [0, 200, 0, 0])
    draw(path / "2", "ILSVRC2012_val_00000003.png", [0, 0, 200, 0])
    draw(path / "10", "ILSVRC2012_val_00000004.png", [0, 0, 0, 200])
    draw(path / "10", "ILSVRC2012_val_00000005.png", [0, 0, 200, 0])


def test_a_map_of_numbered_folders_and_valid_labels(setting, tmp_path, capsys):
    """Without the map, MindSpore's labels would take folder "10" for output 2."""
    numbered(tmp_path / "val")
    class_map, real = tmp_path / "map.json", tmp_path / "real.json"
    class_map.write_text(json.dumps({"0": 0, "1": 1, "2": 2, "10": 3}))
    real.write_text(json.dumps([[0], [], [1], [3, 1], [2, 3]]))
    metrics, content = setting(None, f"eval.class_map={class_map}", f"eval.real_labels={real}")
    assert (metrics.count, metrics.top1_correct, metrics.real_count, metrics.real_correct) == (5, 4, 4, 3)
    expected = {"top1": 80.0, "count": 5, "top1_correct": 4, "without_prediction": 0, "class_map": str(class_map),
                "restricted_to_classes": None, "weights": "raw", "config": "focalv2_digits", "img_size": [8, 8],
                "crop_ratio": 1.0, "flip": False, "unreadable_images": [], "data": str(tmp_path / "val"),
                "checkpoint": str(tmp_path / "run/checkpoints/best.ckpt"), "top5": 100.0, "loss": metrics.loss,
                "real": {"file": str(real), "count": 4, "correct": 3, "accuracy": 75.0},
                "confusion": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]}  # fmt: skip
    assert {key: content[key] for key in expected} == expected
    assert content["classes"][3] == {"index": 3, "name": "10", "count": 2, "correct": 1, "predicted": 1,
                                     "accuracy": 50.0, "precision": 100.0, "recall": 50.0,
                                     "f1": pytest.approx(200 / 3)}  # fmt: skip
    assert content["macro"] == {"precision": 87.5, "recall": 87.5, "f1": pytest.approx(250 / 3), "classes": 4}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"class map {class_map}: 4 folders; predictions among 4 of 4 classes"
    assert "top-1 80.00%" in lines[1] and lines[1].endswith("(5 images)  real 75.00%  (4 images)")
    assert lines[2:] == [
        "mean over 4 classes: precision 87.50%, recall 87.50%, F1 83.33%",
        "worst classes: 10 (50.00% of 2)",
    ]
    real.write_text(json.dumps({path.name: [2] for path in (tmp_path / "val").glob("*/*.png")}))
    metrics, _ = setting(None, f"eval.class_map={class_map}", f"eval.real_labels={real}")
    assert (metrics.real_count, metrics.real_correct) == (5, 2)


def test_folders_of_some_classes_need_no_map(setting, tmp_path, capsys):
    """The third image's highest logit is of "1", which has no folder: of the two that have, it is right."""
    draw(tmp_path / "val" / "10", "1.png", [0, 0, 0, 200])
    draw(tmp_path / "val" / "2", "1.png", [0, 0, 200, 0])
    draw(tmp_path / "val" / "2", "2.png", [0, 250, 200, 0])
    metrics, content = setting(CLASSES_OF_MODEL)
    assert metrics.confusion.tolist() == [[2, 0, 0], [0, 1, 0]]
    assert [entry["name"] for entry in content["classes"]] == ["2", "10"]
    assert [entry["index"] for entry in content["classes"]] == [2, 3]
    assert (content["restricted_to_classes"], content["class_map"]) == (2, None)
    out = capsys.readouterr().out
    assert out.startswith("the folders are 2 of the model's 4 classes: predictions among these\n")
    with pytest.raises(DataError, match=r"has 2 classes, the model 4; .*or evaluate a subset by eval.class_map"):
        setting(None)
    class_map = tmp_path / "map.txt"
    class_map.write_text("2 2\n10 3\n")
    assert setting(None, f"eval.class_map={class_map}")[0].confusion.tolist() == [[2, 0, 0], [0, 1, 0]]


def test_other_classes_than_the_checkpoint_s_are_refused(setting, tmp_path):
    for name in "0123":
        draw(tmp_path / "val" / name, "1.png", [1])
    with pytest.raises(DataError, match=r"only in the folder: 3; only in the model: 10; map them by eval.class_map"):
        setting(CLASSES_OF_MODEL)
    with pytest.raises(DataError, match=r"class map nowhere.txt: cannot be read"):
        setting(CLASSES_OF_MODEL, "eval.class_map=nowhere.txt")
    with pytest.raises(DataError, match=r"valid labels nowhere.json: cannot be read"):
        setting(None, "eval.real_labels=nowhere.json")


def test_unreadable_images_and_nan_reach_the_report(setting, tmp_path):
    numbered(tmp_path / "val")
    broken = tmp_path / "val" / "2" / "ILSVRC2012_val_00000003.png"
    broken.write_bytes(b"no image")
    real = tmp_path / "real.json"
    real.write_text(json.dumps([[0], [1], [2], [3], [3]]))
    _, content = setting(tuple(sorted(CLASSES_OF_MODEL)), f"eval.real_labels={real}", network=NotFinite)
    assert content["unreadable_images"] == [str(broken)]
    assert (content["count"], content["without_prediction"], content["loss"], content["top1"]) == (4, 4, None, 0)
    assert np.sum(content["confusion"]) == 0
    assert (content["real"]["count"], content["real"]["correct"]) == (4, 0)
    nothing = {"count": 0, "correct": 0, "accuracy": None, "predicted": 0}
    nothing |= {"precision": None, "recall": None, "f1": None}
    assert content["classes"][3] == {"index": 3, "name": "2"} | nothing


def test_no_readable_image_is_no_result(setting, tmp_path):
    numbered(tmp_path / "val")
    for path in (tmp_path / "val").rglob("*.png"):
        path.unlink()
        path.symlink_to("nowhere")
    with pytest.raises(UserError, match="none of its images could be read, so nothing was measured"):
        setting(tuple(sorted(CLASSES_OF_MODEL)))


def test_a_report_that_cannot_be_written(setting, tmp_path, capsys):
    """By default a warning after the result; where it was asked for by name, an error."""
    numbered(tmp_path / "val")
    names = tuple(sorted(CLASSES_OF_MODEL))
    (tmp_path / "run" / "eval_best_raw_val.json").mkdir()
    assert setting(names)[0].count == 5
    captured = capsys.readouterr().out.splitlines()
    assert "(5 images)" in captured[0]
    assert captured[-1].startswith("warning: no report: ")
    assert captured[-1].endswith(
        "eval_best_raw_val.json: cannot be written (Is a directory); --json FILE writes it elsewhere"
    )
    with pytest.raises(UserError, match=r"in the way/x.json: cannot be written"):
        (tmp_path / "in the way").touch()
        setting(names, json_path=tmp_path / "in the way" / "x.json")
    assert "(5 images)" in capsys.readouterr().out
    assert setting(names, json_path=tmp_path / "made" / "x.json")[1]["count"] == 5


@pytest.mark.parametrize("batch_size", [7, None])
def test_an_exported_file_is_evaluated_as_its_checkpoint(run_script, digits, tmp_path, batch_size):
    """With the same figures, in the batches that it takes; one that cannot be run here, or is another's, is refused."""
    options = [*TOY_MODEL, f"data.path={digits}", "data.workers=1", "eval.batch_size=100"]
    config = load_config(DIGITS_CONFIG, options)
    checkpoint = write_digits_checkpoint(config, tmp_path / "x.ckpt", classes=tuple("0123456789"))
    exported = export_checkpoint(config, Dist(), str(checkpoint), output=str(tmp_path / "x"), batch_size=batch_size)
    command = ["eval.py", "--config", DIGITS_CONFIG, *options, "--checkpoint"]
    results = []
    for path, name in ((checkpoint, "x.ckpt"), (exported, "x.mindir")):
        code, out, err = run_script(*command, path, "--json", tmp_path / "x.json")
        assert (code, err) == (0, "")
        assert f"{name} (ema weights): top-1 " in out
        results.append(json.loads((tmp_path / "x.json").read_text()))
    assert results[1]["confusion"] == results[0]["confusion"]
    assert results[1]["loss"] == pytest.approx(results[0]["loss"], rel=1e-5)
    for extra, problem in (
        (["--weights", "raw"], "one kind of weights"),
        (["model.img_size=32"], "its input is [1, 16, 16], that of focalv2_digits [1, 32, 32]"),
    ):
        code, _, err = run_script(*command, exported, *extra)
        assert (code, problem in err, err.count("\n")) == (1, True, 1)
    if batch_size is not None:
        with pytest.raises(ValueError, match="for a model of"):  # MindSpore would answer at random
            ExportedModel(exported).answer(np.zeros((8, 1, 16, 16), np.float32))


def test_eval_py_flips_a_real_model(run_script, digits, tmp_path):
    """The report of eval.flip=true on a checkpoint file against logits averaged by hand."""
    options = [*TOY_MODEL, f"data.path={digits}", "data.workers=1", "eval.batch_size=100"]
    config = load_config(DIGITS_CONFIG, options)
    model = config.build_model("CPU").set_train(False)
    checkpoint = tmp_path / "small.ckpt"
    head = np.random.default_rng(0).standard_normal(
        model.head.weight.shape
    )  # the initial one tells images hardly apart
    model.head.weight.set_data(ms.Tensor(head, ms.float32))
    weights = {p.name: p.asnumpy() for p in model.get_parameters()}
    write_checkpoint(checkpoint, weights, {CLASSES: json.dumps([str(digit) for digit in range(10)])})
    command = ["eval.py", "--config", DIGITS_CONFIG, "--checkpoint", checkpoint, *options]
    seen = {}
    for flip in ("false", "true"):
        code, out, err = run_script(*command, f"eval.flip={flip}")
        assert (code, err) == (0, "")
        assert "small.ckpt (raw weights): top-1" in out
        seen[flip] = json.loads((tmp_path / "eval_small_raw_val.json").read_text())
        assert np.sum(seen[flip]["confusion"]) == 360

    images, labels = all_images(config, digits / "val")
    pair = [model(ms.Tensor(np.ascontiguousarray(x))).asnumpy() for x in (images, images[..., ::-1])]
    for flip, logits in (("false", pair[0]), ("true", (pair[0] + pair[1]) / 2)):
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        loss = -np.log(shifted / shifted.sum(axis=1, keepdims=True))[np.arange(360), labels].mean()
        assert seen[flip]["loss"] == pytest.approx(loss, rel=1e-5)
        assert seen[flip]["flip"] == (flip == "true")
    assert seen["false"]["loss"] != pytest.approx(seen["true"]["loss"], rel=1e-4)


def all_images(config, folder):
    """Every image [n, 1, 16, 16], resized and normalised with Pillow and NumPy, and its digit."""
    files = sorted(folder.glob("*/*.png"))
    images = [Image.open(file).convert("L").resize((16, 16), Image.Resampling.BICUBIC) for file in files]
    pixels = np.stack([np.asarray(image, np.float32) for image in images])[:, None] / 255
    labels = np.array([int(file.parent.name) for file in files])
    return ((pixels - config.data.mean[0]) / config.data.std[0]).astype(np.float32), labels
