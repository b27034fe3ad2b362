"""Packs images into MindRecord files, part by part, so that an interrupted packing goes on where it was cut."""

import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import mindspore.dataset as ds
import numpy as np
from mindspore.mindrecord import FileWriter

from focal_twins.data.dataset import DataError
from focal_twins.data.decoding import MAX_PIXELS, Reading, UnreadableImage, decode
from focal_twins.data.image_files import reason_of
from focal_twins.data.image_set import ImageSet
from focal_twins.data.mindrecord_images import INDEX_SUFFIX, MindRecordImages
from focal_twins.data.open_images import open_images
from focal_twins.files.atomic import replace_synced, write_text
from focal_twins.files.file_digest import sha256
from focal_twins.files.names import escape_name
from focal_twins.phrases import counted

ROWS_PER_WRITE = 256
SCHEMA = {"image": {"type": "bytes"}, "label": {"type": "int32"}, "name": {"type": "string"}}


def make_mindrecord(
    root: Path,
    name: str,
    output: Path,
    images_per_file: int,
    workers: int | None = None,
    classes: tuple[str, ...] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Path:
    """Pack the images called `name` (train, val) under a folder into MindRecord files; return the path of the index.

    It goes on where an earlier call was cut.

    Args:
        classes: names of the classes, for formats that do not say them.
        max_pixels: data.max_pixels of the runs that will read them; larger images count as unreadable.

    Raises:
        DataError: no images, none that is readable, an output where they would be overlooked, or no room.
    """
    images = open_images(root, name, classes)
    for notice in images.notices:
        print(notice, flush=True)
    if output.resolve() == root.resolve():
        raise DataError(f"--output {output}: holds the images themselves, which are read first; name another folder")
    if isinstance(images, MindRecordImages):
        raise DataError(f"data file {images.path}: is what would be made; name the folder of the images themselves")
    if images_per_file < 1:
        raise DataError(f"--images-per-file {images_per_file}: must be 1 or more")
    try:
        output.mkdir(parents=True, exist_ok=True)
        starts = range(0, images.size, images_per_file)
        reading = Reading(max_pixels=max_pixels)
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            parts = []
            for number, start in enumerate(starts):
                chosen = range(start, min(start + images_per_file, images.size))
                parts.append(_make_part(images, chosen, output / f"{name}.mindrecord{number:05d}", pool, reading))
                print(f"{name}: {chosen.stop} of {images.size} images", flush=True)
        left_out = [entry for part in parts for entry in part["unreadable"]]
        index = output / f"{name}{INDEX_SUFFIX}"
        parts = [part for part in parts if part["images"]]
        if not parts:
            raise DataError(f"data folder {images.path}: none of its images is readable")
        write_text(index, json.dumps({"classes": images.classes, "parts": parts}))
    except OSError as error:
        raise DataError(f"data folder {output}: cannot be written ({error})") from error
    for image, reason in left_out:
        print(f"unreadable image {escape_name(images.path / image)}: left out ({reason})")
    if left_out:
        print(f"{counted(len(left_out), 'unreadable image')} left out")
    return index


def _make_part(images: ImageSet, chosen: range, path: Path, pool, reading: Reading) -> dict:
    """Write the chosen samples to one MindRecord file and return its entry in the index.

    A file that an earlier call completed is kept.

    Args:
        pool: worker processes that decode. reading: says which files are unreadable.
    """
    names = [images.names[i] for i in chosen]
    described = [str(images.path.resolve()), f"max_pixels {reading.max_pixels}", *names]
    source = hashlib.sha256(os.fsencode("\n".join(described))).hexdigest()
    record = path.with_name(f"{path.name}.json")
    files = [path, path.with_name(f"{path.name}.db")]
    if record.is_file():
        part = json.loads(record.read_text(encoding="utf-8"))  # it was written last and atomically, so it is whole
        unchanged = part["source"] == source and not part["unreadable"]  # unreadable images may have been mended
        if unchanged and all(f.is_file() and sha256(f) == part["sha256"][f.name] for f in files):
            return part
    for leftover in (record, *files):
        leftover.unlink(missing_ok=True)
    written = hashlib.sha256()
    unreadable: list[tuple[str, str]] = []
    count = 0
    with TemporaryDirectory(dir=path.parent, prefix=".making-") as scratch:
        # A MindRecord file contains its own name: it is written under its final name, in another folder.
        writer = FileWriter(str(Path(scratch) / path.name), shard_num=1)
        writer.add_schema(SCHEMA)
        for begin in range(0, len(chosen), ROWS_PER_WRITE):
            rows = chosen[begin : begin + ROWS_PER_WRITE]
            contents, reasons = zip(*(_read_content(images, i) for i in rows), strict=True)
            found = pool.map(partial(problem_of, reading=reading), contents, chunksize=16)
            problems = [reason or why for reason, why in zip(reasons, found, strict=True)]
            kept = [(c, i) for c, i, reason in zip(contents, rows, problems, strict=True) if reason is None]
            unreadable += [(images.names[i], why) for i, why in zip(rows, problems, strict=True) if why is not None]
            for content, _ in kept:
                written.update(content)
            if kept:
                writer.write_raw_data(
                    [
                        {"image": c, "label": int(images.labels[i]), "name": escape_name(images.names[i])}
                        for c, i in kept
                    ]
                )
            count += len(kept)
        if count:
            writer.commit()
            if _hash_images(Path(scratch) / path.name) != written.hexdigest():
                raise OSError(f"{path.name} does not read back as it was written")
            for file in files:
                replace_synced(Path(scratch) / file.name, file)
    part = {
        "file": path.name,
        "images": count,
        "unreadable": unreadable,
        "source": source,
        "bytes": {file.name: file.stat().st_size for file in files} if count else {},
        "sha256": {file.name: sha256(file) for file in files} if count else {},
    }
    if count:
        write_text(record, json.dumps(part))
    return part


def _read_content(images: ImageSet, index: int) -> tuple[bytes, str | None]:
    """Return the content of an image's file, and why it cannot be read."""
    try:
        return images.content(index).tobytes(), None
    except OSError as error:
        return b"", reason_of(error)


def problem_of(content: bytes, reading: Reading) -> str | None:
    """Return why a file's content cannot be decoded, or None. Worker processes call this."""
    try:
        decode(np.frombuffer(content, np.uint8), 3, reading)
    except UnreadableImage as problem:
        return str(problem)
    return None


def _hash_images(path: Path) -> str:
    """Return the SHA-256 of the images of a MindRecord file, one after the other."""
    result = hashlib.sha256()
    dataset = ds.MindDataset(str(path), columns_list=["image"], sampler=ds.SequentialSampler())
    for (image,) in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True):
        result.update(image.tobytes())
    return result.hexdigest()
