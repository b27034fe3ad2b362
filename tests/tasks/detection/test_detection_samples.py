"""Batches for a detector: their contents, their canvases, their independence of workers and ranks, and faults."""

import numpy as np
import pytest

from focal_twins.config.detection import DetectionAugment
from focal_twins.data.coco import CocoImages
from focal_twins.data.dataset import DataError
from focal_twins.data.dense_transforms import rescaled_size, resize_pixels
from focal_twins.data.pipeline import EvalBatches, TrainBatches, UnreadableImages, epoch_order
from focal_twins.data.transforms import normalise
from focal_twins.models.detectors.detector import TargetMaker
from focal_twins.tasks.detection.samples import DetectionEvalSamples, DetectionTrainSamples
from tests.coco_files import SIZES, make_coco

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LYING, STANDING = (64, 96), (96, 64)
# Images of 36 to 64 pixels a side are cropped and resized, some of them to another orientation.
AUGMENT = {"short_sides": [40, 48, 64], "long_side": 96, "crop_short_sides": [48, 64], "crop_range": [32, 56]}
PLAIN = {"short_sides": [64], "long_side": 96, "crop": False, "hflip": 0.0}


class ListedObjects(TargetMaker):
    """Returns the objects as they are: [8, 5] of box and label, -1 where there is none; and what it was told."""

    names = ("objects", "told")

    def __init__(self, needs_masks=False):
        self.needs_masks = needs_masks

    def __call__(self, canvas, extent, boxes, labels, generator, masks=None):
        objects = np.full((8, 5), -1, np.float32)
        objects[: len(boxes)] = np.concatenate([boxes, labels[:, None]], axis=1)
        areas = 0 if masks is None else masks.reshape(-1, extent[0] * extent[1]).sum()
        return objects, np.array([*canvas, *extent, generator.integers(1000), areas], np.int64)


@pytest.fixture
def data(tmp_path):
    path = make_coco(tmp_path, sizes=SIZES * 6)
    return CocoImages.open(tmp_path / "train", path, for_training=True, with_masks=True)


def train_samples(data, canvases=(LYING, STANDING), augment=AUGMENT, maker=None, seed=0) -> DetectionTrainSamples:
    unreadable = UnreadableImages(data.path / "unreadable.txt")
    section = DetectionAugment(**augment)
    return DetectionTrainSamples(data, list(canvases), section, MEAN, STD, seed, unreadable, maker or ListedObjects())


def train_batches(data, samples=None, **options):
    samples = samples or train_samples(data)
    return TrainBatches(data, samples, seed=samples.seed, **{"batch_size": 4, **options})


def eval_samples(data, canvases=(LYING, STANDING)) -> DetectionEvalSamples:
    unreadable = UnreadableImages(data.path / "unreadable.txt")
    return DetectionEvalSamples(data, list(canvases), 64, 96, MEAN, STD, unreadable)


def assert_equal(some, others):
    """Two lists of batches hold the same bits."""
    for batch, other in zip(some, others, strict=True):
        for array, same in zip(batch, other, strict=True):
            np.testing.assert_array_equal(array, same)


def test_an_image_stands_in_the_corner_of_a_canvas_of_zeros(data):
    """Nothing is drawn here, so that the file itself is to be found in the batch: scene03 is 60 x 36."""
    samples = train_samples(data, canvases=[(64, 64)], augment=PLAIN | {"short_sides": [36], "long_side": 60})
    pixels, extent, objects, told = samples.sample((np.int64(3),), 0, 0)
    assert (pixels.shape, pixels.dtype) == ((64, 64, 3), np.uint8)
    assert extent.tolist() == [60, 36]
    np.testing.assert_array_equal(objects[:3, :4], data.boxes(3))
    assert objects[:, 4].tolist() == [0, 1, 2, -1, -1, -1, -1, -1]
    assert told[:4].tolist() == [64, 64, 60, 36]
    images, extents, _, _ = samples.batch((pixels[None], extent[None], objects[None], told[None]), None)
    assert (images.shape, images.dtype, extents.tolist()) == ((1, 3, 64, 64), np.float32, [[60, 36]])
    np.testing.assert_array_equal(images[0, :, :60, :36], normalise(data.pixels(3, 3)[None], MEAN, STD)[0])
    assert not images[0, :, 60:].any() and not images[0, :, :, 36:].any()


def test_an_update_has_one_canvas_and_crops_change_the_orientation(data):
    batches = list(train_batches(data, batch_size=2, batches_per_update=2))
    assert len(batches) == 12
    shapes = [batch[0].shape[2:] for batch in batches]
    assert set(shapes) == {LYING, STANDING}
    assert shapes[::2] == shapes[1::2]
    for images, extents, _, told in batches:
        assert (told[:, :2] == images.shape[2:]).all()
        assert (told[:, 2:4] == extents).all()
    samples, turned = train_samples(data), 0
    for position in range(24):
        drawn, _ = samples._augmentation(0, 0, position)
        turned += drawn.size[0] > drawn.size[1]
    assert turned  # scene00 lies


def test_a_sample_is_keyed_by_its_position_before_the_arrangement(data):
    """So what is drawn for an image does not depend on which canvases there are."""
    samples = train_samples(data)
    batches = list(train_batches(data, samples))
    order = epoch_order(0, 0, data.size)
    positions = samples.arrange(0, order, 4)
    assert sorted(positions.tolist()) != positions.tolist()
    for batch, slots in zip(batches, positions.reshape(-1, 4), strict=True):
        for row, position in enumerate(slots):
            _, *arrays = samples.sample((order[position],), 0, int(position))
            for array, expected in zip(batch[1:], arrays, strict=True):
                np.testing.assert_array_equal(array[row], expected)
    square = train_samples(data, canvases=[(96, 96)])
    assert square.sample((order[0],), 0, 0)[1].tolist() == samples.sample((order[0],), 0, 0)[1].tolist()


def test_two_ranks_have_the_updates_of_one(data):
    whole = list(train_batches(data, batch_size=4))
    parts = [list(train_batches(data, batch_size=2, rank=rank, ranks=2)) for rank in range(2)]
    for one, *of_ranks in zip(whole, *parts, strict=True):
        for array, *shares in zip(one, *of_ranks, strict=True):
            np.testing.assert_array_equal(array, np.stack(shares, axis=1).reshape(array.shape))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_rest_of_an_epoch_is_the_same_after_a_resume_and_with_any_workers(data, workers):
    batches = train_batches(data, epochs=2)
    whole = [*batches, *batches]
    resumed = train_batches(data, epochs=2, first_epoch=0, first_batch=4, workers=workers)
    assert_equal([*resumed, *resumed], whole[4:])
    assert not np.array_equal(whole[0][1], whole[6][1])


def test_the_order_is_arranged_without_opening_an_image(data):
    samples = train_samples(data)
    for name in data.names:
        (data.path / name).unlink()
    assert len(samples.arrange(0, epoch_order(0, 0, 24), 4)) == 24
    assert train_samples(data, canvases=[(96, 96)]).arrange(0, epoch_order(0, 0, 24), 4) is None


def test_an_unreadable_image_is_replaced_by_the_next_of_its_canvas(data):
    """One that is damaged, one that is missing, and one of another size than its boxes are for."""
    whole = {name: (data.path / name).read_bytes() for name in data.names}
    (data.path / "scene00.png").write_bytes(whole["scene00.png"][:40])
    (data.path / "scene04.png").unlink()
    (data.path / "scene08.png").write_bytes(whole["scene01.png"])
    samples = train_samples(data, augment=PLAIN)
    pixels, extent, objects, _ = samples.sample((np.int64(0),), 0, 0)
    # scene02 is 40 x 40 and is resized to 64 x 64, which stands on the first canvas, as scene00 does.
    np.testing.assert_array_equal(pixels[:, :64], resize_pixels(data.pixels(2, 3), (64, 64)))
    assert extent.tolist() == [64, 64]
    np.testing.assert_allclose(objects[:3, :4], data.boxes(2) * 1.6, rtol=1e-6)
    assert samples.sample((np.int64(4),), 0, 0)[1].tolist() == [64, 64]
    assert samples.sample((np.int64(8),), 0, 0)[1].tolist() == [64, 64]
    assert samples.unreadable.read() == {
        str(data.path / "scene00.png"): samples.unreadable.read()[str(data.path / "scene00.png")],
        str(data.path / "scene04.png"): "No such file or directory",
        str(data.path / "scene08.png"): "is of 48 x 64 pixels, and the JSON says 64 x 48; try data.exif=apply",
    }


def test_a_canvas_without_a_readable_image_is_one_line(data):
    samples = train_samples(data, augment=PLAIN)
    for name in data.names:
        (data.path / name).write_bytes(b"broken")
    with pytest.raises(DataError, match="no image for the canvas 96 x 64 is readable") as error:
        samples.sample((np.int64(3),), 0, 0)
    assert "\n" not in str(error.value)


def test_masks_come_where_the_detector_wants_them(data):
    samples = train_samples(data, augment=AUGMENT, maker=ListedObjects(needs_masks=True))
    for position in range(12):
        _, _, objects, told = samples.sample((np.int64(position),), 0, position)
        boxes = objects[objects[:, 4] >= 0, :4]
        areas = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum()
        assert told[5] == pytest.approx(areas, rel=0.2, abs=60)
    assert train_samples(data).sample((np.int64(0),), 0, 0)[3][5] == 0


@pytest.mark.parametrize(
    ("canvases", "augment", "expected"),
    [
        ([LYING], PLAIN, "85 x 64 (height x width), which these data can come to (augment.short_sides, augment.long_"),
        ([STANDING], PLAIN, "no canvas holds images of 64 x 85"),
        ([LYING, (96, 32)], PLAIN, "the nearest is 64 x 96; add one of 96 x 64, or make the images smaller"),
        ([LYING], AUGMENT, "no canvas holds images of"),
    ],
)
def test_every_size_that_may_come_needs_a_canvas(data, canvases, augment, expected):
    with pytest.raises(DataError) as error:
        train_samples(data, canvases=canvases, augment=augment)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_lying_images_need_no_canvas_for_standing_ones(tmp_path):
    data = CocoImages.open(tmp_path / "train", make_coco(tmp_path, sizes=((48, 64), (40, 40))))
    train_samples(data, canvases=[(64, 96)], augment=PLAIN)
    with pytest.raises(DataError, match="no canvas holds images of"):  # which crops may be
        train_samples(data, canvases=[(64, 96)], augment=AUGMENT)
    nearly_square = {"short_sides": [48], "long_side": 96, "crop_short_sides": [64], "crop_range": [60, 64]}
    train_samples(data, canvases=[(64, 64)], augment=nearly_square)


@pytest.mark.parametrize("workers", [1, 2])
def test_evaluation_has_every_image_once_and_each_canvas_in_a_row(data, workers):
    """An unreadable image keeps its place, with a weight of zero."""
    (data.path / "scene05.png").write_bytes(b"broken")
    seen, shapes = [], []
    for rank in range(2):
        samples = eval_samples(data)
        for images, extents, weights, indices in EvalBatches(
            data, samples, batch_size=1, rank=rank, ranks=2, workers=workers
        ):
            (index,) = indices
            size = rescaled_size(data.image_size(index), (64, 96))
            assert extents.tolist() == [list(size)]
            assert images.dtype == np.float32
            assert weights.tolist() == [0 if index == 5 else 1]
            inside = images[0, :, : size[0], : size[1]]
            stored = np.zeros((64, 48, 3), np.uint8) if index == 5 else data.pixels(index, 3)
            np.testing.assert_array_equal(inside, normalise(resize_pixels(stored, size)[None], MEAN, STD)[0])
            assert not images[0, :, size[0] :].any() and not images[0, :, :, size[1] :].any()
            seen.append(index)
            shapes.append((rank, images.shape[2:]))
    assert sorted(seen) == list(range(24))
    assert shapes == sorted(shapes)
    assert list(samples.unreadable.read()) == [str(data.path / "scene05.png")]


def test_an_unreadable_image_takes_no_more_memory_than_its_canvas(tmp_path):
    """Whatever size the JSON gives it."""

    def enlarge(content):
        content["images"][0] |= {"height": 10**9, "width": 10**9}

    path = make_coco(tmp_path, "val", change=enlarge)
    (tmp_path / "val" / "scene03.png").write_bytes(b"broken")
    pixels, extent, weight, _ = eval_samples(CocoImages.open(tmp_path / "val", path)).sample((np.int64(3),), 3)
    assert (pixels.shape, extent.tolist(), weight) == ((64, 96, 3), [64, 64], 0)
    assert not pixels.any()


def test_evaluation_needs_a_canvas_for_every_image(data):
    with pytest.raises(DataError, match=r"no canvas holds images of 85 x 64 .* \(eval.short_side, eval.long_side\)"):
        eval_samples(data, canvases=[LYING, (96, 32)])
