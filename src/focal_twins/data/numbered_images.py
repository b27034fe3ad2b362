"""Serves image files by their numbers: the worker process that decodes an image also opens its file."""

from collections.abc import Iterator

import mindspore.dataset as ds
import numpy as np
from PIL import ExifTags, Image

from focal_twins.data.dataset import Dataset, NumberedSamples
from focal_twins.data.decoding import AS_STORED, Reading, UnreadableImage, decode
from focal_twins.data.image_files import open_regular, read_file, reason_of


class NumberedImages(Dataset):
    """Holds image files of a folder, whose numbers alone go through MindSpore's reading thread.

    So a file that cannot be opened is one image that cannot be read. MindSpore's own readers open files in C++ and end
    the pipeline at the first that fails.

    Attributes:
        reading: says how files become pixels.
    """

    columns = ("sample",)
    reading: Reading = AS_STORED

    def reader(self, sampler):
        return ds.GeneratorDataset(
            NumberedSamples(self.size), list(self.columns), sampler=sampler, python_multiprocessing=False
        )

    def content(self, index):
        return read_file(self.path / self.name(index))

    def image_size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of a sample by the head of its file; (0, 0) where it cannot be read."""
        try:
            with open_regular(self.path / self.name(index)) as file, Image.open(file) as image:
                size = image.height, image.width
                if self.reading.exif == "apply" and image.getexif().get(ExifTags.Base.Orientation, 1) > 4:
                    return size[::-1]
                return size
        except Exception:  # Pillow's plugins raise nearly every type on damaged files
            return 0, 0

    def pixels(self, index: int, channels: int) -> np.ndarray:
        """Return the pixels [H, W, channels] uint8 of a sample.

        Raises:
            UnreadableImage: the file is damaged or cannot be opened.
        """
        try:
            return decode(self.content(index), channels, self.reading)
        except OSError as error:
            raise UnreadableImage(reason_of(error)) from error

    def readable_pixels(self, channels: int) -> Iterator[np.ndarray]:
        """Yield the pixels [H, W, channels] uint8 of the samples that can be read."""
        for index in range(self.size):
            try:
                yield self.pixels(index, channels)
            except UnreadableImage:
                continue
