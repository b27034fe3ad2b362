"""Batches for a segmentor: their contents, their independence of workers and ranks, and faults while they are made."""

import numpy as np
import pytest

from focal_twins.config.segmentation import SegmentationAugment
from focal_twins.data.dataset import DataError
from focal_twins.data.dense_transforms import resize_pixels
from focal_twins.data.label_folders import LabelledFolders
from focal_twins.data.label_images import LabelRules
from focal_twins.data.pipeline import EvalBatches, TrainBatches, UnreadableImages
from focal_twins.data.transforms import normalise
from focal_twins.tasks.segmentation.samples import SegmentationEvalSamples, SegmentationTrainSamples
from tests.label_files import make_label_folders, make_pair, save_png

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PLAIN = {"resize": None, "ratio_range": [1.0, 1.0], "cat_max_ratio": 1.0, "hflip": 0.0, "photometric": False}


@pytest.fixture
def root(tmp_path):
    return make_label_folders(tmp_path, count=12)


def opened(root, rules=None) -> LabelledFolders:
    rules = rules or LabelRules(4)
    classes = tuple(map(str, range(4)))
    return LabelledFolders.open(root / "images/training", root / "annotations/training", rules, classes)


def train_samples(data, size=(32, 32), seed=0, mean=MEAN, std=STD, **augment) -> SegmentationTrainSamples:
    unreadable = UnreadableImages(data.path / "unreadable.txt")
    return SegmentationTrainSamples(data, size, SegmentationAugment(**augment), mean, std, seed, unreadable)


def eval_samples(data, resize=None, scales=(1.0,), size=(32, 32)) -> SegmentationEvalSamples:
    unreadable = UnreadableImages(data.path / "unreadable.txt")
    return SegmentationEvalSamples(data, size, resize, list(scales), MEAN, STD, unreadable)


def train_batches(data, seed=0, augment=None, **options):
    samples = train_samples(data, seed=seed, **({"resize": [60, 30]} if augment is None else augment))
    return TrainBatches(data, samples, seed=seed, **{"batch_size": 4, **options})


def test_a_batch_is_normalised_images_and_flat_labels(root):
    images, labels = next(iter(train_batches(opened(root))))
    assert (images.shape, images.dtype) == ((4, 3, 32, 32), np.float32)
    assert (labels.shape, labels.dtype) == ((4, 32 * 32), np.int32)
    assert set(np.unique(labels)) <= {0, 1, 2, 3, 255}


def test_padding_is_zero_after_normalising_and_ignored(root):
    """Nothing is drawn here, so that the file itself is to be found in the batch: scene0 is 24 x 40, scene2 41 x 26."""
    data = opened(root)
    samples = train_samples(data, size=(48, 48), **PLAIN)
    pixels, label, extent = samples.sample((np.int64(0),), 0, 0)
    stored, stored_label = data.pair(0, 3)
    assert extent.tolist() == [24, 40]
    images, labels = samples.batch((pixels[None], label[None], extent[None]), None)
    np.testing.assert_array_equal(images[0, :, :24, :40], normalise(stored[None], MEAN, STD)[0])
    assert not images[0, :, 24:].any() and not images[0, :, :, 40:].any()
    labels = labels.reshape(48, 48)
    np.testing.assert_array_equal(labels[:24, :40], stored_label)
    assert (labels[24:] == 255).all() and (labels[:, 40:] == 255).all()


def test_image_and_label_go_the_same_way(tmp_path):
    """An image that shows its own label keeps showing it through resizing, cropping and flipping."""
    blocks = np.random.default_rng(0).integers(0, 4, (6, 8), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    save_png(tmp_path / "annotations/training/a.png", blocks)
    save_png(tmp_path / "images/training/a.png", (blocks * 60)[:, :, None].repeat(3, 2))
    samples = train_samples(opened(tmp_path), (40, 40), photometric=False, resize=[128, 96], ratio_range=[1.0, 2.0])
    flips = 0
    for position in range(40):
        pixels, label, _ = samples.sample((np.int64(0),), 0, position)
        shown = (pixels[..., 0] + 30) // 60
        assert (shown == label).mean() > 0.75  # the filter mixes colours along the edges of blocks
        mirrored = train_samples(samples.data, (40, 40), photometric=False, hflip=0.0, resize=[128, 96],
                                 ratio_range=[1.0, 2.0]).sample((np.int64(0),), 0, position)[1]  # fmt: skip
        flips += bool((mirrored != label).any())
        np.testing.assert_array_equal(label, mirrored if (mirrored == label).all() else mirrored[:, ::-1])
    assert 8 < flips < 32


def test_workers_and_ranks_change_nothing(root):
    data = opened(root)
    alone = list(train_batches(data, batch_size=4))
    for batch, other in zip(alone, train_batches(data, batch_size=4, workers=2), strict=True):
        for array, same in zip(batch, other, strict=True):
            np.testing.assert_array_equal(array, same)
    ranks = [list(train_batches(data, batch_size=2, rank=rank, ranks=2)) for rank in range(2)]
    for number, (images, labels) in enumerate(alone):
        for rank in range(2):
            np.testing.assert_array_equal(images[rank::2], ranks[rank][number][0])
            np.testing.assert_array_equal(labels[rank::2], ranks[rank][number][1])
    assert (alone[0][0] != next(iter(train_batches(data, seed=1)))[0]).any()
    rest = list(train_batches(data, first_batch=2))
    np.testing.assert_array_equal(rest[0][0], alone[2][0])


def test_grey_networks_train_on_grey_pixels(root):
    samples = train_samples(opened(root), mean=[0.5], std=[0.2], resize=[60, 30])
    arrays = [samples.sample((np.int64(index),), 0, index) for index in range(4)]
    images, _ = samples.batch(tuple(map(np.stack, zip(*arrays, strict=True))), None)
    assert images.shape == (4, 1, 32, 32)


def test_labels_of_many_classes_are_wide(tmp_path):
    save_png(tmp_path / "annotations/training/a.png", np.full((20, 20), 299, np.uint16))
    save_png(tmp_path / "images/training/a.png", np.zeros((20, 20, 3), np.uint8))
    samples = train_samples(opened(tmp_path, LabelRules(300, 65535)), **PLAIN)
    pixels, label, extent = samples.sample((np.int64(0),), 0, 0)
    labels = samples.batch((pixels[None], label[None], extent[None]), None)[1].reshape(32, 32)
    assert (labels[:20, :20] == 299).all() and (labels[20:] == 65535).all()


def test_the_next_usable_image_takes_the_place_of_another(root):
    """Image 3's file is damaged, 4's label is, and 5 has no labelled pixel."""
    data = opened(root)
    (data.path / data.name(3)).write_bytes(b"no image")
    (data.label_path / data.label_name(4)).write_bytes(b"no label")
    save_png(data.label_path / data.label_name(5), np.full(data.pair(5, 3)[1].shape, 255, np.uint8))
    samples = train_samples(data, **PLAIN)
    expected = samples.sample((np.int64(6),), 0, 7)
    for index in (3, 4, 5):
        for array, same in zip(samples.sample((np.int64(index),), 0, 7), expected, strict=True):
            np.testing.assert_array_equal(array, same)
    reasons = {name.rsplit("/", 1)[1]: reason for name, reason in samples.unreadable.read().items()}
    assert reasons[data.name(3)].startswith("not an image")
    assert reasons[data.name(4)].startswith("its label image ") and reasons[data.name(4)].endswith(": not an image")
    assert reasons[data.name(5)] == "no pixel of its label image has a class"


def test_a_set_without_any_usable_image_ends_the_run(root):
    data = opened(root)
    for name in data.names:
        (data.path / name).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^data folder .*training: no image of it is readable and has a label"):
        list(train_batches(data))


def test_a_faulty_label_ends_the_run_in_one_line(root):
    data = opened(root)
    save_png(data.label_path / data.label_name(7), np.full(data.pair(7, 3)[1].shape, 9, np.uint8))
    with pytest.raises(DataError, match=r"^label image .*: value 9 in \d+ pixels is none of the 4 classes") as error:
        list(train_batches(data, workers=2))
    assert "\n" not in str(error.value)


def test_evaluation_resizes_images_and_not_labels(root):
    data = opened(root)
    resized = {(24, 40): (20, 33), (30, 30): (20, 20), (41, 26): (32, 20)}
    seen = []
    for images, labels, weights, indices in EvalBatches(data, eval_samples(data, [64, 20]), batch_size=1, workers=2):
        pixels, label = data.pair(int(indices[0]), 3)
        size = resized[label.shape]
        np.testing.assert_array_equal(images, normalise(resize_pixels(pixels, size)[None], MEAN, STD))
        np.testing.assert_array_equal(labels[0], label)
        assert weights.tolist() == [1.0] and weights.dtype == np.float32
        seen += indices.tolist()
    assert sorted(seen) == list(range(12))
    # In the order of what the network sees, so that it compiles the graph of each size once.
    sizes = [resized[data.image_size(index)] for index in seen]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3


def test_images_that_come_to_one_size_follow_each_other(root, monkeypatch):
    """Files of 24 x 32 and 48 x 64 are both 20 x 27 to the network, one of 26 x 40 is 20 x 31."""
    data = opened(root)
    sizes = [(24, 32), (26, 40), (48, 64), (0, 0), (52, 80), (36, 48)]
    monkeypatch.setattr(data, "image_size", sizes.__getitem__)
    assert eval_samples(data, [64, 20]).order(range(6)) == [3, 0, 5, 2, 1, 4]


def test_evaluation_at_several_scales(root):
    data = opened(root)
    samples = eval_samples(data, None, (0.5, 1.0, 1.75))
    assert samples.outputs == ("pixels", "pixels1", "pixels2", "label", "weight", "index")
    batch = next(iter(EvalBatches(data, samples, batch_size=1)))
    assert [array.shape[2:] for array in batch[:3]] == [(12, 20), (24, 40), (42, 70)]
    assert batch[3].shape == (1, 24, 40)


def test_images_of_one_size_make_batches_and_others_do_not(tmp_path):
    for number in range(3):
        make_pair(tmp_path, "training", f"same{number}", (20, 24), 4, number)
    data = opened(tmp_path)
    shapes = [batch[0].shape for batch in EvalBatches(data, eval_samples(data), batch_size=2)]
    assert shapes == [(2, 3, 20, 24), (1, 3, 20, 24)]
    for name in ("same1", "same2"):
        make_pair(tmp_path, "training", name, (20, 25), 4, 0)
    with pytest.raises(DataError, match=r"different shapes \(\(20, 24, 3\), \(20, 25, 3\)\); set eval.batch_size=1$"):
        list(EvalBatches(data, eval_samples(data), batch_size=2, workers=2))


@pytest.mark.parametrize(("damaged", "size"), [("image", (24, 40)), ("label", (24, 40)), ("both", (32, 32))])
def test_an_unreadable_image_keeps_its_place_in_evaluation(root, damaged, size):
    data = opened(root)
    if damaged in ("image", "both"):
        (data.path / data.name(0)).write_bytes(b"no image")
    if damaged in ("label", "both"):
        (data.label_path / data.label_name(0)).write_bytes(b"no label")
    samples = eval_samples(data)
    batches = list(EvalBatches(data, samples, batch_size=1))
    assert [float(batch[2][0]) for batch in batches] == [0.0] + [1.0] * 11
    assert batches[0][0].shape == (1, 3, *size)
    assert batches[0][1].shape == (1, *size) and (batches[0][1] == 255).all()
    assert [name.rsplit("/", 1)[1] for name in samples.unreadable.read()] == [data.name(0)]
