"""The pipeline from files to batches."""

import os
from itertools import chain
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from focal_twins.config.classification import ClassificationAugment, ClassificationData
from focal_twins.data.dataset import DataError
from focal_twins.data.image_folder import ImageFolder
from focal_twins.data.open_images import open_images
from focal_twins.data.pack_mindrecord import make_mindrecord
from focal_twins.data.pipeline import (
    EvalBatches,
    TrainBatches,
    UnreadableImages,
    configure_reading,
    epoch_order,
    rank_positions,
    resolve_workers,
)
from focal_twins.data.transforms import EvalTransform, Preprocessing, TrainTransform
from focal_twins.tasks.classification.samples import LabelledEvalSamples, LabelledTrainSamples
from tests.image_files import make_folder, zip_folder

DATA = ClassificationData(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
AUGMENT = ClassificationAugment(scale=[0.3, 1.0], label_smoothing=0.0)
# Every random choice there is.
FULL = ClassificationAugment(
    vflip=0.3, auto_augment="rand-m9-mstd0.5-inc1", erasing=0.5, erasing_count=[1, 3], mixup=0.8, cutmix=1.0,
    mixup_prob=0.9, mixup_mode="elem", interpolation="random",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return ImageFolder.open(make_folder(tmp_path / "train", {"b10": 6, "b9": 7, "cat": 8}))


@pytest.fixture
def photographs(tmp_path):
    """21 crops of a photograph, for what does not show on one colour."""
    photograph = Image.fromarray(load_sample_image("china.jpg"))
    generator = np.random.default_rng(0)
    path = make_folder(tmp_path / "images" / "train", {"b10": 6, "b9": 7, "cat": 8})
    for file in sorted(path.rglob("*.png")):
        left, top = generator.integers(0, [560, 340])
        photograph.crop((left, top, left + 80, top + 60)).save(file)
    return ImageFolder.open(path)


@pytest.fixture
def unreadable(tmp_path):
    return UnreadableImages(tmp_path / "unreadable.txt")


def train_batches(images, unreadable, epochs=1, augment=AUGMENT, size=(8, 8), **options):
    """The batches of the first epochs, labels as targets of all the mass."""
    arguments = {"batch_size": 4, "epochs": epochs + options.get("first_epoch", 0)} | options
    transform = TrainTransform(size, augment, 5, [0.5] * 3)
    batches = batches_of(images, transform, unreadable, **arguments)
    return [list(batches) for _ in range(epochs)]


def batches_of(images, transform, unreadable, **arguments):
    """Training batches of a transform."""
    samples = LabelledTrainSamples(images, transform, DATA.mean, DATA.std, unreadable)
    return TrainBatches(images, samples, seed=transform.seed, repeats=transform.augment.repeats, **arguments)


def joined(epochs):
    return list(chain.from_iterable(epochs))


def eval_batches(images, unreadable, **options):
    preprocessing = Preprocessing(EvalTransform((8, 8), 1.0, "bicubic"), DATA.mean, DATA.std)
    return list(EvalBatches(images, LabelledEvalSamples(images, preprocessing, unreadable), batch_size=4, **options))


def assert_equal(some, others):
    """Two lists of batches hold the same bits."""
    for a, b in zip(some, others, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


def grey(images):
    return np.round(images[:, 0, 0, 0] * 255).astype(int)


def test_an_epoch_is_the_shuffled_folder_without_the_incomplete_update(folder, unreadable):
    first, second = train_batches(folder, unreadable, epochs=2)
    levels = [20 * label + index for label, count in enumerate((6, 7, 8)) for index in range(count)]
    for epoch, batches in enumerate((first, second)):
        seen = np.concatenate([grey(images) for images, _ in batches])
        assert seen.tolist() == [levels[i] for i in epoch_order(5, epoch, 21)[:20]]
        targets = np.concatenate([targets for _, targets in batches])
        assert (targets.argmax(1) == seen // 20).all()
        assert (targets.max(1) == 1).all()
        assert batches[0][0].dtype == np.float32


def test_repeated_augmentation_shows_an_image_several_times(folder, unreadable):
    """Three copies in a row, each cropped anew; an epoch is as long as without."""
    order = epoch_order(5, 0, 21, repeats=3)
    assert len(order) == 21
    assert (order.reshape(7, 3) == order[::3, None]).all()
    assert len(set(order[::3])) == 7
    (batches,) = train_batches(folder, unreadable, augment=AUGMENT.model_copy(update={"repeats": 3}))
    seen = np.concatenate([grey(images) for images, _ in batches])
    levels = [20 * label + index for label, count in enumerate((6, 7, 8)) for index in range(count)]
    assert seen.tolist() == [levels[i] for i in order[:20]]


def test_copies_of_an_image_go_to_different_ranks():
    order = epoch_order(5, 0, 960, repeats=3)
    for rank in range(4):
        batches = order[rank_positions(960, 16, 1, rank, 4)].reshape(-1, 16)
        assert all(len(set(batch)) == 16 for batch in batches.tolist())


def test_order_and_erasing_are_anew_in_every_epoch_and_with_every_seed(folder, unreadable):
    orders = {epoch_order(seed, epoch, 100).tobytes() for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    augment = ClassificationAugment(erasing=1.0, erasing_mode="const")
    constant = np.full((4, 8, 8, 3), 200, np.uint8)
    erased = set()
    for seed in range(3):
        transform = TrainTransform((8, 8), augment, seed)
        batches = batches_of(folder, transform, unreadable, batch_size=4)
        for epoch in range(3):
            images, _ = batches.samples.batch((constant, np.zeros(4, np.int32)), batches._key(epoch, 0))
            assert len({image.tobytes() for image in images}) > 1  # and for every position
            erased.add(images.tobytes())
    assert len(erased) == 9


def test_batches_do_not_depend_on_the_number_of_workers(photographs, unreadable):
    """With every random choice on. MindSpore takes no more workers than there are cores."""
    one, several = (
        train_batches(photographs, unreadable, epochs=2, augment=FULL, size=(32, 32), workers=resolve_workers(n, 1))
        for n in (1, 4)
    )
    assert_equal(joined(one), joined(several))


def test_samples_do_not_depend_on_which_process_makes_them(photographs, unreadable):
    """Four processes, more than one core may feed, that take the samples as they come."""
    transform = TrainTransform((32, 32), FULL, 5)
    sample = LabelledTrainSamples(photographs, transform, DATA.mean, DATA.std, unreadable).sample
    keys = [((np.int64(i), 0), epoch, i) for epoch in range(3) for i in range(21)]
    with get_context("fork").Pool(4) as pool:
        several = pool.starmap(sample, keys, chunksize=1)
    one = [sample(*key) for key in reversed(keys)][::-1]
    np.testing.assert_array_equal([pixels for pixels, _ in several], [pixels for pixels, _ in one])


@pytest.mark.parametrize("cut", [(2, 0), (0, 3), (1, 4)])
@pytest.mark.parametrize("form", ["folder", "mindrecord"])
def test_a_run_cut_anywhere_continues_with_the_same_batches(photographs, unreadable, tmp_path, form, cut):
    """From whole epochs or from within one, with every random choice on, of any format."""
    if form == "mindrecord":
        make_mindrecord(photographs.path.parent, "train", tmp_path / "packed", 7, 1)
    images = photographs if form == "folder" else open_images(tmp_path / "packed", "train")
    epoch, batch = cut
    whole = train_batches(photographs, unreadable, epochs=3, augment=FULL, size=(32, 32))
    tail = train_batches(
        images, unreadable, epochs=3 - epoch, augment=FULL, size=(32, 32), first_epoch=epoch, first_batch=batch
    )
    expected = joined(whole[epoch:])[batch:]
    assert len(expected) < 15
    assert_equal(expected, joined(tail))


def test_zip_files_give_the_batches_of_the_folder(photographs, unreadable):
    zip_folder(photographs.path)
    photographs.path.rename(photographs.path.with_name("elsewhere"))
    zipped = open_images(photographs.path.parent, "train")
    photographs.path.with_name("elsewhere").rename(photographs.path)
    assert_equal(
        *(
            joined(train_batches(images, unreadable, epochs=2, augment=FULL, workers=2))
            for images in (photographs, zipped)
        )
    )


def test_ranks_take_disjoint_parts_of_each_global_batch(photographs, unreadable):
    """Two ranks with batches of 2 read together what one reads with batches of 4, augmented and erased alike."""
    augment = FULL.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    (one,) = train_batches(photographs, unreadable, augment=augment)
    ranks = [
        train_batches(photographs, unreadable, augment=augment, batch_size=2, rank=rank, ranks=2)[0]
        for rank in range(2)
    ]
    for whole, *parts in zip(one, *ranks, strict=True):
        for rank, (images, targets) in enumerate(parts):
            np.testing.assert_array_equal(whole[0][rank::2], images)
            np.testing.assert_array_equal(whole[1][rank::2], targets)


def test_mixing_is_keyed_by_update_part_and_rank(folder, unreadable):
    """Parts of an accumulated update and ranks mix differently, and the next epoch differently again."""
    augment = AUGMENT.model_copy(update={"mixup": 1.0, "label_smoothing": 0.0})

    def shares(**options):
        epochs = train_batches(folder, unreadable, epochs=2, augment=augment, batch_size=2, **options)
        return [float(targets.max()) for batches in epochs for _, targets in batches if targets.max() < 1]

    whole = shares(batches_per_update=2) + shares(batches_per_update=2, ranks=2) + shares(ranks=2, rank=1)
    assert len(set(whole)) > 0.9 * len(whole) - 5  # all but the first, shared with another update count
    assert shares() == shares()


def test_mixing_ends_with_its_epoch_and_augmentation_with_the_cooldown(folder, unreadable):
    augment = ClassificationAugment(scale=[1, 1], ratio=[1, 1], hflip=0, mixup=1.0, erasing=1.0, mixup_off_epoch=1)
    mixed, unmixed = train_batches(folder, unreadable, epochs=2, augment=augment)
    smoothed = np.float32(0.9 + 0.1 / 3)
    assert any((targets.max(1) < smoothed - 1e-3).any() for _, targets in mixed)
    assert all((abs(targets.max(1) - smoothed) < 1e-6).all() for _, targets in unmixed)
    assert all((np.ptp(images, axis=(1, 2, 3)) > 0).all() for images, _ in unmixed)  # erased still
    transform = TrainTransform((8, 8), augment.model_copy(update={"cooldown": "crop"}), 5, cooldown_epoch=1)
    batches = batches_of(folder, transform, unreadable, batch_size=4, epochs=2)
    before, after = ([np.ptp(images, axis=(1, 2, 3)).max() for images, _ in batches] for _ in range(2))
    assert min(before) > 0
    assert max(after) == 0


def test_few_images_are_refused(folder, unreadable):
    with pytest.raises(DataError, match="do not fill one update of 64"):
        train_batches(folder, unreadable, batch_size=64)


@pytest.mark.parametrize(("size", "batch", "parts", "ranks"), [(101, 4, 1, 3), (64, 8, 2, 2), (50, 5, 3, 1)])
def test_positions_cover_whole_updates_once(size, batch, parts, ranks):
    positions = [rank_positions(size, batch, parts, rank, ranks) for rank in range(ranks)]
    whole = size // (batch * parts * ranks) * batch * parts * ranks
    assert sorted(np.concatenate(positions).tolist()) == list(range(whole))
    assert len({len(p) for p in positions}) == 1


@pytest.mark.parametrize(("workers", "all_ranks"), [(1, (1, 2, 4, 30)), (2, (2,))])
def test_evaluation_reads_every_image_once_and_tells_which(folder, unreadable, workers, all_ranks):
    """With more ranks than images too, where some have none."""
    levels = [20 * label + index for label, count in enumerate((6, 7, 8)) for index in range(count)]
    for ranks in all_ranks:
        seen = []
        for rank in range(ranks):
            batches = eval_batches(folder, unreadable, rank=rank, ranks=ranks, workers=workers)
            for images, labels, weights, indices in batches:
                assert (weights == 1).all()
                assert (labels == folder.labels[indices]).all()
                assert grey(images).tolist() == [levels[index] for index in indices]
                seen += indices.tolist()
        assert sorted(seen) == list(range(21))


@pytest.mark.parametrize("workers", [1, 2])
def test_unreadable_images_are_named_and_replaced_or_left_out(folder, unreadable, workers):
    broken = [folder.path / "b9" / "002.png", folder.path / "cat" / "007.png"]
    broken[0].write_bytes(broken[0].read_bytes()[:40])
    broken[1].write_bytes(b"")
    (batches,) = train_batches(folder, unreadable, workers=workers)
    seen = np.concatenate([grey(images) for images, _ in batches])
    order = epoch_order(5, 0, 21)[:20]
    levels = [20 * label + index for label, count in enumerate((6, 7, 8)) for index in range(count)]
    replaced = {22: 23, 47: 40}  # the next image of the class; after the last, the first
    assert seen.tolist() == [replaced.get(levels[i], levels[i]) for i in order]

    batches = eval_batches(folder, unreadable, workers=workers)
    weights = np.concatenate([weights for _, _, weights, _ in batches])
    assert weights.sum() == 19
    assert sorted(unreadable.read()) == sorted(map(str, broken))


@pytest.mark.parametrize("workers", [1, 2])
def test_files_that_cannot_be_opened_are_named_and_replaced_or_left_out(folder, unreadable, workers):
    """Also by a run that goes on within the epoch, with the same batches."""
    broken = [folder.path / "b9" / "002.png", folder.path / "cat" / "003.png", folder.path / "cat" / "007.png"]
    for path in broken:
        path.unlink()
    broken[0].symlink_to("nowhere.png")
    os.mkfifo(broken[1])
    whole = train_batches(folder, unreadable, epochs=2, workers=workers)
    order = epoch_order(5, 0, 21)[:20]
    levels = [20 * label + index for label, count in enumerate((6, 7, 8)) for index in range(count)]
    replaced = {22: 23, 43: 44, 47: 40}
    seen = np.concatenate([grey(images) for images, _ in whole[0]])
    assert seen.tolist() == [replaced.get(levels[i], levels[i]) for i in order]
    rest = train_batches(folder, unreadable, epochs=2, first_batch=2, workers=workers)
    assert_equal(joined(rest), joined(whole)[2:])

    weights = np.concatenate([weights for _, _, weights, _ in eval_batches(folder, unreadable, workers=workers)])
    assert weights.tolist() == [0 if i in (8, 16, 20) else 1 for i in range(21)]
    assert unreadable.read() == {
        str(broken[0]): "No such file or directory",
        str(broken[1]): "not a regular file",
        str(broken[2]): "No such file or directory",
    }


def test_names_of_any_bytes_survive_in_the_list_of_unreadable_images(unreadable):
    names = [os.fsdecode(b"/data/cat/caf\xe9.png"), "/data/a\tb\nc\\d.png", "/data/\u2028.png", "/data/\u65e5.png"]
    for name in names:
        unreadable.add(name, f"{name}: not\nan image")
    assert list(unreadable.read()) == names
    assert len(unreadable.path.read_text(encoding="utf-8").splitlines()) == 4


def test_a_class_without_a_readable_image_is_one_line(folder, unreadable):
    for path in (folder.path / "b9").iterdir():
        path.write_bytes(b"broken" + path.name.encode())
    with pytest.raises(DataError, match="train: no image of class b9 is readable") as error:
        train_batches(folder, unreadable)
    assert "\n" not in str(error.value)


def test_a_class_that_vanishes_is_one_line(folder, unreadable):
    batches = batches_of(folder, TrainTransform((8, 8), AUGMENT, 5), unreadable, batch_size=4, epochs=300)
    list(batches)
    for path in (folder.path / "cat").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="train: no image of class cat is readable") as error:
        for _ in range(300):
            list(batches)
    assert "\n" not in str(error.value)


def test_a_damaged_zip_entry_is_an_unreadable_image(folder, unreadable):
    path = zip_folder(folder.path)
    folder.path.rename(folder.path.with_name("elsewhere"))
    content = bytearray(path.read_bytes())
    content[content.index(b"cat/007.png") + 30] ^= 1  # of the image, behind its name
    path.write_bytes(content)
    train_batches(open_images(path.parent, "train"), unreadable)
    assert list(unreadable.read()) == [f"{path}/cat/007.png"]


def test_reading_is_configured(monkeypatch):
    configured = {}
    for name in ("set_prefetch_size", "set_numa_enable"):
        monkeypatch.setattr(
            f"mindspore.dataset.config.{name}", lambda value, name=name: configured.update({name: value})
        )
    monkeypatch.setattr("focal_twins.data.pipeline.has_libnuma", lambda: True)
    configure_reading(ClassificationData(prefetch=7), memory_nodes=2)
    assert configured == {"set_prefetch_size": 7, "set_numa_enable": True}
    configure_reading(ClassificationData(), memory_nodes=1)
    assert configured["set_numa_enable"] is False
    monkeypatch.setattr("focal_twins.data.pipeline.has_libnuma", lambda: False)
    configure_reading(ClassificationData(), memory_nodes=2)
    assert configured["set_numa_enable"] is False
    with pytest.raises(DataError, match=r"data\.numa: true needs the system's libnuma"):
        configure_reading(ClassificationData(numa=True))
