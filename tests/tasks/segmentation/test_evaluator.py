"""Counts of pixels over images of all sizes, in each mode, over ranks."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from focal_twins.config.load import load_config
from focal_twins.distributed.ranks import Dist
from focal_twins.errors import UserError
from focal_twins.models import create_model
from focal_twins.models.precision import apply_precision
from focal_twins.models.registry import ArgumentError
from focal_twins.models.segmentors.segmentor import Segmentor
from focal_twins.tasks.segmentation.evaluator import SegmentationEvaluator
from focal_twins.tasks.task import evaluate
from tests.tasks.segmentation.small_run import CLASSES, CONFIG, write_config

IGNORED = 255


class ColourNetwork(nn.Cell):
    """Takes the mean of each channel over four by four pixels for the logit of a class, times its one parameter."""

    in_chans, num_classes = 3, 3

    def __init__(self, size=(32, 32), scale=None):
        super().__init__()
        self.img_size, self.map_size = tuple(size), (size[0] // 4, size[1] // 4)
        self.scale = Parameter(Tensor(10.0, ms.float32), name="scale") if scale is None else scale

    def construct(self, images):
        (height, width), batch = self.map_size, images.shape[0]
        maps = images.reshape((batch, 3, height, 4, width, 4)).mean(5).mean(3)
        return maps.reshape((batch, 3, -1)).transpose((0, 2, 1)) * self.scale

    def at(self, size):
        if size[0] % 4 or size[1] % 4:
            raise ArgumentError("img_size", "sides must be multiples of 4")
        return ColourNetwork(size, self.scale)

    on_canvas = at

    def set_part(self, size):
        assert all(part <= whole for part, whole in zip(size, self.img_size, strict=True))


class Scenes:
    """What an evaluator asks of a data set."""

    path, classes = "scenes", CLASSES

    def __init__(self, size):
        self.size = size

    def name(self, index):
        return f"scene{index}.png"


def scene(index, size, blocks=8):
    """An image [3, H, W] whose brightest channel is the class, in squares; its label [H, W]."""
    generator = np.random.default_rng(index)
    squares = generator.integers(0, 3, (size[0] // blocks, size[1] // blocks), dtype=np.uint8)
    label = squares.repeat(blocks, 0).repeat(blocks, 1)
    return (np.arange(3)[:, None, None] == label).astype(np.float32), label


def batch_of(indices, size, scales=(1,), unreadable=()):
    images, labels = zip(*(scene(index, size) for index in indices), strict=True)
    scaled = [np.stack(images).repeat(scale, 2).repeat(scale, 3) for scale in scales]
    weights = np.array([index not in unreadable for index in indices], np.float32)
    return (*scaled, np.stack(labels), weights, np.array(indices))


@pytest.fixture
def evaluator(tmp_path):
    """evaluator(network, images, overrides...) builds one for a number of images."""

    def build(network, images, *overrides, dist=None):
        config = load_config(write_config(tmp_path, tmp_path), overrides)
        mode = "whole" if config.eval.mode == "auto" else config.eval.mode
        return SegmentationEvaluator(network, Scenes(images), config, mode, dist or Dist())

    return build


BATCHES = [batch_of([0, 1], (32, 48)), batch_of([2], (48, 32)), batch_of([3], (40, 40))]
MODES = {
    "whole": [],
    "canvas": ["eval.canvas_step=16"],
    "slide": ["eval.stride=[16,16]"],
    "slide over short sides": ["backbone.img_size=64"],
}


@pytest.mark.parametrize("case", MODES)
def test_every_mode_counts_every_pixel_once(case, evaluator):
    """Squares of two by two tokens are right but where the resized logits of two meet in the middle."""
    network = ColourNetwork((64, 64) if "short" in case else (32, 32))
    overrides = [f"eval.mode={case.split()[0]}", "eval.batch_size=2", *MODES[case]]
    result = evaluate(network, BATCHES, evaluator(network, 4, *overrides))
    labels = [label for batch in BATCHES for label in batch[-3]]
    assert result.counts.pixels == sum(label.size for label in labels)
    np.testing.assert_array_equal(
        result.counts.labelled, np.bincount(np.concatenate([label.ravel() for label in labels]), minlength=3)
    )
    assert result.figures["miou"] > 97
    np.testing.assert_array_equal(result.image_counts[:, 0], [label.size for label in labels])
    assert result.image_counts[:, 1].sum() == result.counts.correct.sum()
    assert np.all(result.image_iou > 0.97)


def test_scales_and_mirror_images_are_averaged(evaluator):
    """A network that knows its left from its right gives the same figures for mirrored images only with eval.flip."""
    network = ColourNetwork()
    batch = batch_of([0, 1], (32, 48), scales=(1, 2))
    overrides = ["eval.scales=[1.0,2.0]", "eval.batch_size=2", "eval.flip=true"]
    built = evaluator(network, 2, *overrides)
    calls = []
    answer = built.answering(network, lambda cell, images: calls.append(images.asnumpy()) or cell(images))
    built.add(answer, batch)
    assert [images.shape for images in calls] == [(2, 3, 32, 48)] * 2 + [(2, 3, 64, 96)] * 2
    np.testing.assert_array_equal(calls[1], calls[0][..., ::-1])
    assert built.result().figures["miou"] > 97


def test_networks_of_a_bounded_number_of_sizes_are_kept_with_the_same_weights(evaluator):
    network = ColourNetwork()
    built = evaluator(network, 4, "eval.graphs=2")
    evaluate(network, BATCHES, built)
    kept = built.networks
    assert list(kept.others) == [((48, 32), False), ((40, 40), False)]  # (32, 48) was used before these
    known = [cell for cell, _ in kept.others.values()]
    network.scale.set_data(Tensor(0.0, ms.float32))  # as the averaged weights are put in place of the others
    result = evaluate(network, BATCHES[1:], built)
    assert built.networks is kept and [cell for cell, _ in kept.others.values()] == known
    assert result.figures["aacc"] < 50  # all logits are 0, and the first class is predicted
    assert result.counts.confusion[:, 1:].sum() == 0


def test_an_unreadable_image_does_not_count(evaluator):
    network = ColourNetwork()
    result = evaluate(network, [batch_of([0, 1], (32, 48), unreadable=[1])], evaluator(network, 2, "eval.batch_size=2"))
    assert result.counts.pixels == 32 * 48
    assert "(1 image)" in str(result)
    only_unreadable = [batch_of([0], (32, 48), unreadable=[0])]
    assert evaluate(network, only_unreadable, evaluator(network, 1)).figures == {"miou": 0, "macc": 0, "aacc": 0}


def test_logits_that_are_not_finite_are_told_and_wrong(evaluator):
    network = ColourNetwork()
    images, label, *rest = batch_of([0], (32, 32))
    images[:, :, :4, :4] = np.nan
    result = evaluate(network, [(images, label, *rest)], evaluator(network, 1))
    missing = result.counts.without_prediction
    assert missing >= 16
    assert any(f"{missing} pixels have logits that are not finite" in line for line in result.remarks())


def test_a_size_that_the_network_cannot_take_is_one_line(evaluator):
    network = ColourNetwork()
    images, label, *rest = batch_of([0], (32, 32))
    with pytest.raises(UserError, match=r"eval.mode: whole: .* 30 x 32 pixels \(sides must be multiples of 4\); use"):
        evaluate(network, [(images[..., :30], label, *rest)], evaluator(network, 1))


class Recording(Dist):
    """One rank of two: it keeps what it has to send, or takes in what the other one kept."""

    def __init__(self, rank, kept, adds):
        super().__init__(rank=rank, size=2)
        object.__setattr__(self, "kept", kept)
        object.__setattr__(self, "adds", adds)

    def sum(self, values):
        values = np.asarray(values, np.float32)
        if self.adds:
            return values + self.kept.pop(0)
        self.kept.append(values)
        return values

    def gather(self, array):
        if self.adds:
            return [array, self.kept.pop(0)]
        self.kept.append(array)
        return None


def test_counts_over_two_ranks_are_those_of_one(evaluator):
    network, kept = ColourNetwork(), []
    whole = evaluate(network, BATCHES, evaluator(network, 4))
    evaluate(network, BATCHES[1:], evaluator(network, 4, dist=Recording(1, kept, adds=False)))
    both = evaluate(network, BATCHES[:1], evaluator(network, 4, dist=Recording(0, kept, adds=True)))
    assert both.content() == whole.content()
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(both.arrays()[name], array, err_msg=name)
    assert both.pictures() == whole.pictures()
    assert len(whole.pictures()) == 2 * 4


def test_the_report_names_classes_pairs_and_images(evaluator):
    """Also of a class that occurs nowhere; the file is JSON, which has no NaN."""
    network = ColourNetwork()
    images, label = scene(0, (32, 32))
    label = np.where(label == 2, 1, label)  # the third class has no pixel, and is predicted
    label[:, :3] = IGNORED
    content = evaluate(
        network, [(images[None], label[None], np.ones(1), np.array([0]))], evaluator(network, 1)
    ).content()
    json.dumps(content, allow_nan=False)
    by_name = {entry["name"]: entry for entry in content["classes"]}
    assert (by_name["sand"]["iou"], by_name["sand"]["acc"], by_name["sand"]["pixels"]) == (0, None, 0)
    (first, *_) = content["most_confused"]
    assert (first["label"], first["predicted"]) == ("sea", "sand")
    assert 0 < first["share"] < 100
    assert [image["image"] for image in content["worst_images"]] == ["scene0.png"]
    assert content["pixels"] == 32 * 29


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_networks_of_other_sizes_have_the_parameters_at_any_precision(level):
    """Mixed precision puts layers into wrappers; a network of another size is made from the model all the same."""
    backbone = create_model(features_only=True, **CONFIG["backbone"])
    model: Segmentor = create_model(backbone=backbone, **CONFIG["model"])
    own = dict(model.parameters_and_names())
    apply_precision(model, level)
    assert {id(parameter) for parameter in model.at((40, 48)).get_parameters()} == {id(p) for p in own.values()}


@pytest.mark.parametrize("precision", ["O0", "O2"])
def test_pooling_on_a_canvas_sees_the_image_alone(precision):
    """What remains is what convolutions and attention see beyond the image's edge."""
    ms.set_seed(0)
    backbone = create_model(features_only=True, **CONFIG["backbone"])
    model: Segmentor = create_model(backbone=backbone, **CONFIG["model"]).set_train(False)
    tokens = np.random.default_rng(0).standard_normal((1, 8 * 6, 16)).astype(np.float32)  # of stride 8: 64 x 48 pixels
    maps = tokens.reshape(1, 8, 6, 16)
    apply_precision(model, precision)
    canvas = model.on_canvas((64, 64))
    canvas.set_part((64, 48))
    padded = np.concatenate([maps, np.full((1, 8, 2, 16), 100.0, np.float32)], 2)
    pooled = [branch[0](Tensor(padded.reshape(1, 64, 16))).asnumpy() for branch in canvas.decode_head.psp_modules]
    exact = [branch[0](Tensor(tokens)).asnumpy() for branch in model.at((64, 48)).decode_head.psp_modules]
    for found, expected in zip(pooled, exact, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
