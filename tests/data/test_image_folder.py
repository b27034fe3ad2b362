"""The pipeline from folders to batches."""

import numpy as np
import pytest
from PIL import Image

from src.schema import AugmentConfig, DataConfig
from src.data.image_folder import (
    DataError,
    Epochs,
    ImageFolder,
    UnreadableImages,
    check_classes,
    epoch_order,
    eval_dataset,
    rank_positions,
    train_dataset,
)
from src.data.transforms import EvalTransform, TrainTransform

DATA = DataConfig(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
AUGMENT = AugmentConfig(scale=[0.3, 1.0])


def make_folder(path, counts, hidden=True):
    """Class folders of 8x8 images. Image i of class c has the grey level 20 c + i everywhere."""
    for label, (name, count) in enumerate(counts.items()):
        (path / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8), (20 * label + index,) * 3).save(path / name / f"{index:03d}.png")
    if hidden:
        (path / ".cache").mkdir()
        (path / next(iter(counts)) / "readme.txt").write_text("not an image")
    return path


@pytest.fixture
def folder(tmp_path):
    return ImageFolder.open(make_folder(tmp_path / "train", {"b10": 6, "b9": 7, "cat": 8}))


@pytest.fixture
def unreadable(tmp_path):
    return UnreadableImages(tmp_path / "unreadable.txt")


def train_batches(folder, unreadable, epochs=1, **options):
    arguments = {"batch_size": 4, "unreadable": unreadable} | options
    iterator = Epochs(train_dataset(folder, TrainTransform((8, 8), AUGMENT, 5), DATA, **arguments), epochs)
    return [[(images.copy(), labels.copy()) for images, labels in iterator] for _ in range(epochs)]


def grey(images):
    return np.round(images[:, 0, 0, 0] * 255).astype(int)


def test_classes_are_the_sorted_folder_names(folder):
    assert folder.classes == ("b10", "b9", "cat")
    assert folder.size == 21


def test_an_epoch_is_the_shuffled_folder_without_the_incomplete_update(folder, unreadable):
    first, second = train_batches(folder, unreadable, epochs=2)
    levels = [20 * label + index for label, count in enumerate((6, 7, 8)) for index in range(count)]
    for epoch, batches in enumerate((first, second)):
        seen = np.concatenate([grey(images) for images, _ in batches])
        assert seen.tolist() == [levels[i] for i in epoch_order(5, epoch, 21)[:20]]
        labels = np.concatenate([labels for _, labels in batches])
        assert (labels == seen // 20).all()
        assert batches[0][0].dtype == np.float32


def test_repeated_augmentation_shows_an_image_several_times(folder, unreadable):
    """Three copies in a row, each cropped anew; an epoch is as long as without."""
    order = epoch_order(5, 0, 21, repeats=3)
    assert len(order) == 21
    assert (order.reshape(7, 3) == order[::3, None]).all()
    assert len(set(order[::3])) == 7
    transform = TrainTransform((8, 8), AUGMENT.model_copy(update={"repeats": 3}), 5)
    dataset = train_dataset(folder, transform, DATA, batch_size=4, unreadable=unreadable)
    seen = np.concatenate([grey(images) for images, _ in Epochs(dataset)])
    levels = [20 * label + index for label, count in enumerate((6, 7, 8)) for index in range(count)]
    assert seen.tolist() == [levels[i] for i in order[:20]]


def test_batches_do_not_depend_on_the_number_of_workers(folder, unreadable):
    one, two = (train_batches(folder, unreadable, epochs=2, workers=workers) for workers in (1, 2))
    for a, b in zip(sum(one, []), sum(two, []), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


def test_a_later_first_epoch_continues_the_run(folder, unreadable):
    whole = train_batches(folder, unreadable, epochs=4)
    tail = train_batches(folder, unreadable, epochs=2, first_epoch=2)
    for a, b in zip(sum(whole[2:], []), sum(tail, []), strict=True):
        np.testing.assert_array_equal(a[0], b[0])


def test_ranks_take_disjoint_parts_of_each_global_batch(folder, unreadable):
    """Two ranks with batches of 2 read together what one reads with batches of 4, augmented alike."""
    (one,) = train_batches(folder, unreadable)
    ranks = [train_batches(folder, unreadable, batch_size=2, rank=rank, ranks=2)[0] for rank in range(2)]
    for whole, *parts in zip(one, *ranks, strict=True):
        np.testing.assert_array_equal(whole[0], np.concatenate([images for images, _ in parts]))


@pytest.mark.parametrize(("size", "batch", "parts", "ranks"), [(101, 4, 1, 3), (64, 8, 2, 2), (50, 5, 3, 1)])
def test_positions_cover_whole_updates_once(size, batch, parts, ranks):
    positions = [rank_positions(size, batch, parts, rank, ranks) for rank in range(ranks)]
    whole = size // (batch * parts * ranks) * batch * parts * ranks
    assert sorted(np.concatenate(positions).tolist()) == list(range(whole))
    assert len({len(p) for p in positions}) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_evaluation_reads_every_image_once_and_tells_which(folder, unreadable, workers):
    """With more ranks than images too, where some have none."""
    levels = [20 * label + index for label, count in enumerate((6, 7, 8)) for index in range(count)]
    for ranks in (1, 2, 4, 30):
        seen = []
        for rank in range(ranks):
            dataset = eval_dataset(
                folder, EvalTransform((8, 8), 1.0, "bicubic"), DATA, batch_size=4, unreadable=unreadable, rank=rank,
                ranks=ranks, workers=workers,
            )  # fmt: skip
            for images, labels, weights, indices in Epochs(dataset):
                assert (weights == 1).all()
                assert (grey(images) // 20 == labels).all()
                assert grey(images).tolist() == [levels[index] for index in indices]
                seen += indices.tolist()
        assert sorted(seen) == list(range(21))


ODD_NAMES = ["10.jpg", "9.jpg", "B.JPG", "b.png", "a.jpg", "A.jpeg", "a.JPEG", "a.Jpeg", "a b.jpg", "a-b.jpg", "a.b.jpg",
             "a.jpg.png", "_x.gif", "~.bmp", ".hidden.jpg", "\u00e9.tif", "\u03a9.webp", "\u65e5.PNG", "\uffee.jpg",
             "\U0001d4b3.jpg", "ILSVRC2012_val_00000293.JPEG"]  # fmt: skip


def test_names_are_in_the_order_of_the_reader(tmp_path):
    """MindSpore's order of files is Python's of the names, class by class, whatever these are."""
    generator = np.random.default_rng(0)
    for name in generator.permutation(["a", "a b", "a-b", "a.b", "B", "b10", "b9", "1", "10", "2", "\u00e9", "\U0001d4b3"]):
        (tmp_path / name).mkdir()
        for file in generator.permutation(ODD_NAMES):
            (tmp_path / name / file).write_bytes(f"{name}/{file}".encode())
        (tmp_path / name / "readme.txt").write_text("not an image")
    folder = ImageFolder.open(tmp_path)
    rows = folder.reader(None).create_tuple_iterator(num_epochs=1, output_numpy=True)
    read = [(data.tobytes().decode(), folder.classes[label]) for data, label in rows]
    assert [name for name, _ in read] == folder.names()
    assert all(name.startswith(f"{label}/") for name, label in read)
    assert len(read) == folder.size == 12 * len(ODD_NAMES)


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

    dataset = eval_dataset(
        folder, EvalTransform((8, 8), 1.0, "bicubic"), DATA, batch_size=4, unreadable=unreadable, workers=workers
    )
    weights = np.concatenate([weights for _, _, weights, _ in Epochs(dataset)])
    assert weights.sum() == 19
    assert sorted(unreadable.read()) == sorted(map(str, broken))


def test_a_class_without_a_readable_image_is_one_line(folder, unreadable):
    for path in (folder.path / "b9").iterdir():
        path.write_bytes(b"broken" + path.name.encode())
    with pytest.raises(DataError, match="b9: none of its images is readable") as error:
        train_batches(folder, unreadable)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.mkdir(), "empty; expected one folder of images per class"),
        (lambda path: make_folder(path, {"only": 2}), "has the one class 'only'"),
        (lambda path: [make_folder(path, {"a": 2, "b": 1}), (path / "c").mkdir()], "c: holds no images"),
    ],
)
def test_unusable_folders_are_refused(tmp_path, build, expected):
    build(tmp_path / "train")
    with pytest.raises(DataError, match=expected):
        ImageFolder.open(tmp_path / "train")


def test_mismatches_are_refused(tmp_path, folder, unreadable):
    val = ImageFolder.open(make_folder(tmp_path / "val", {"b10": 1, "b9": 1, "dog": 1}))
    with pytest.raises(DataError, match=r"'cat' is only in .*train"):
        check_classes(folder, val, 3)
    with pytest.raises(DataError, match=r"has 3 classes, the model 10; set model.num_classes=3"):
        check_classes(folder, folder, 10)
    with pytest.raises(DataError, match="do not fill one update of 64"):
        train_batches(folder, unreadable, batch_size=64)


def test_a_file_that_vanishes_is_one_line(folder, unreadable):
    iterator = Epochs(
        train_dataset(folder, TrainTransform((8, 8), AUGMENT, 5), DATA, batch_size=4, unreadable=unreadable), 300
    )
    list(iterator)
    for path in (folder.path / "cat").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"open file: .*cat/00\d.png") as error:
        for _ in range(300):
            list(iterator)
    assert "\n" not in str(error.value)
