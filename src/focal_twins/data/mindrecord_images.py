"""Reads labelled images from MindRecord files, MindSpore's format for large sets: a few big files, not a million.

The index NAME.mindrecord.json, which pack_mindrecord.py writes last, lists the classes and, for every part, its file,
number of images and checksum. The images of all parts together are in the order of ImageFolder: if all of them were
readable, a run on them repeats one on the folder bit for bit.
"""

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path

import mindspore.dataset as ds
import numpy as np

from focal_twins.data.dataset import DataError
from focal_twins.data.image_set import ImageSet
from focal_twins.files.names import unescape_name

INDEX_SUFFIX = ".mindrecord.json"
DAMAGED = "damaged after it was made"


class MindRecordImages(ImageSet):
    """Serves the images of MindRecord files with an index. MindDataset takes no custom samplers: the order is fixed."""

    fixed_order = True

    def __init__(self, path: Path, classes: tuple[str, ...], parts: list[Path], size: int, listing: str):
        """Hold what the index says.

        Args:
            listing: see Dataset; it is made of the index, since the names would have to be read from all parts.
        """
        self.path = path
        self.listing = listing
        self.classes = classes
        self.parts = parts
        self.size = size
        self.creator = os.getpid()

    @classmethod
    def open(cls, path: Path) -> "MindRecordImages":
        """Read the index and check by their sizes in bytes that all parts are there.

        Raises:
            DataError: a part is missing or was cut short.
        """
        path = Path(path)
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            classes, parts = tuple(index["classes"]), index["parts"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"data file {path}: not an index of MindRecord files; make it anew") from error
        for part in parts:
            for name, size in part["bytes"].items():
                file = path.with_name(name)
                if not file.is_file() or file.stat().st_size != size:
                    raise DataError(
                        f"data file {file}: missing or not of {size} bytes; scripts/make_mindrecord.py makes it anew"
                    )
        checksum = hashlib.sha256(json.dumps([part["sha256"] for part in parts]).encode()).hexdigest()
        files, size = [path.with_name(part["file"]) for part in parts], sum(part["images"] for part in parts)
        return cls(path, classes, files, size, f"{cls.__name__}:{checksum[:16]}")

    def reader(self, sampler):
        return ds.MindDataset(
            [str(part) for part in self.parts],
            columns_list=["image", "label"],
            num_parallel_workers=min(4, os.cpu_count() or 1),
            sampler=sampler,
        )

    def file_content(self, image):
        return image

    def _read_column(self, name: str) -> list:
        parts = [str(part) for part in self.parts]
        try:
            dataset = ds.MindDataset(parts, columns_list=[name], sampler=ds.SequentialSampler())
            return [row[0][()] for row in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)]
        except RuntimeError as error:
            raise DataError(f"data file {self.path}: {DAMAGED}; scripts/make_mindrecord.py makes it anew") from error

    @cached_property
    def names(self):
        return [unescape_name(str(name)) for name in self._read_column("name")]

    @cached_property
    def labels(self):  # type: ignore[override]  # read when first asked for
        return np.array(self._read_column("label"), dtype=np.int32)

    def name(self, index):
        """Return the name of one sample; a worker process, which has no reader, can only number it."""
        return self.names[index] if os.getpid() == self.creator else f"image {index}"

    def successors(self, index):
        """List the other samples of a sample's class.

        Raises:
            DataError: in a worker process, which has no reader for them.
        """
        if os.getpid() != self.creator:
            raise DataError(
                f"data file {self.path}: image {index} cannot be decoded, as one of more than data.max_pixels; make "
                "the file anew by scripts/make_mindrecord.py (--max-pixels), which leaves such images out"
            )
        return super().successors(index)

    def content(self, index):
        if os.getpid() != self.creator:  # MindSpore's reader needs threads that a forked worker does not have
            raise OSError(f"{self.path}: {DAMAGED}")
        reader = self.reader(ds.SubsetSampler([int(index)]))
        try:
            ((content, _),) = reader.create_tuple_iterator(num_epochs=1, output_numpy=True)
        except RuntimeError as error:
            raise OSError(f"{self.path}: {DAMAGED}") from error
        return np.frombuffer(content.tobytes(), np.uint8)
