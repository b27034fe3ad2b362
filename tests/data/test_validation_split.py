"""A share of the training images for validation: the same ones wherever and however often it is chosen."""

import mindspore.dataset as ds
import numpy as np
import pytest

from focal_twins.data.dataset import DataError
from focal_twins.data.image_folder import ImageFolder
from focal_twins.data.open_images import open_images
from focal_twins.data.pack_mindrecord import make_mindrecord
from focal_twins.data.pipeline import EpochPositions, EpochSampler, TrainSamples
from focal_twins.data.validation_split import split_images
from tests.image_files import make_folder, zip_folder

COUNTS = {"a": 40, "b": 10, "c": 2}


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "images" / "train", COUNTS, hidden=False)


def both(images, fraction=0.2, seed=0):
    return split_images(images, fraction, seed).values()


def test_each_class_gives_its_share_and_none_is_lost(folder):
    images = ImageFolder.open(folder)
    train, val = both(images)
    assert sorted(train.names + val.names) == sorted(images.names)
    assert np.bincount(val.labels).tolist() == [8, 2, 1]
    assert train.classes == val.classes == images.classes
    assert (train.is_held_back, val.is_held_back) == (False, True)
    assert val.notices == (f"data folder {folder}: 11 of 52 images are the validation (data.val_fraction)",)
    assert [val.classes[label] for label in val.labels] == [name.split("/")[0] for name in val.names]
    assert train.listing != val.listing
    few, _ = both(images, 0.99)
    assert np.bincount(few.labels).tolist() == [1, 1, 1]


def test_names_and_the_seed_choose(folder):
    """A larger share holds a smaller one; images that come later leave the others where they are."""
    images = ImageFolder.open(folder)
    names = {fraction: set(list(both(images, fraction))[1].names) for fraction in (0.1, 0.2, 0.5)}
    assert names[0.1] < names[0.2] < names[0.5]
    assert set(list(both(images, 0.2, seed=1))[1].names) != names[0.2]
    for number in range(40, 44):
        (folder / "a" / f"{number:03d}.png").write_bytes((folder / "a" / "000.png").read_bytes())
    later = set(list(both(ImageFolder.open(folder)))[1].names)
    assert all(name.startswith("a/") for name in names[0.2] ^ later)  # classes without new images stay as they are
    assert len(names[0.2] - later) <= 2


@pytest.mark.parametrize("form", ["folder", "zip", "mindrecord"])
def test_every_format_reads_the_images_of_its_names(form, folder, tmp_path):
    """The same ones, by a fixed order or by the sampler of training."""
    expected = list(both(ImageFolder.open(folder)))
    if form == "zip":
        zip_folder(folder)
        folder.rename(tmp_path / "unpacked")
        folder = tmp_path / "unpacked"
    elif form == "mindrecord":
        make_mindrecord(folder.parent, "train", tmp_path / "packed", images_per_file=16, workers=1)
    images = open_images(tmp_path / ("packed" if form == "mindrecord" else "images"), "train")
    for part, own in zip(both(images), expected, strict=True):
        assert part.names == own.names
        samplers = [ds.SubsetSampler([5, 0, part.size - 1])]
        if not part.fixed_order:
            positions = EpochPositions(NothingArranged(), part.size, 1, 0, 1, 1, 0, 1)
            samplers.append(EpochSampler(positions, 0, part.size - 3))
        for sampler in samplers:
            rows = list(part.reader(sampler).create_tuple_iterator(num_epochs=1, output_numpy=True))
            numbers = [5, 0, part.size - 1] if sampler is samplers[0] else positions.indices(0)[-3:]
            for (image, label), number in zip(rows, numbers, strict=True):
                assert part.file_content(image).tobytes() == (folder / own.names[number]).read_bytes()
                assert label == own.labels[number]
        assert part.content(3).tobytes() == (folder / part.name(3)).read_bytes()
        assert {part.labels[other] for other in part.successors(2)} == {part.labels[2]}


class NothingArranged(TrainSamples):
    outputs = ()

    def sample(self, columns, epoch, position):
        raise NotImplementedError

    def batch(self, arrays, key):
        raise NotImplementedError


def test_a_class_with_a_single_image_is_refused(tmp_path):
    folder = make_folder(tmp_path / "train", {"a": 3, "b": 1}, hidden=False)
    with pytest.raises(DataError, match=r"class 'b' has a single image; data\.val_fraction needs two of each"):
        list(both(ImageFolder.open(folder)))
