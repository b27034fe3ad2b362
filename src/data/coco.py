"""Reads images with objects in COCO's format (stand-in until branch detdata has its own)."""

import numpy as np
from pycocotools import mask as run_lengths

from src.data.dataset import Dataset


class CocoImages(Dataset):
    def image_size(self, index: int) -> tuple[int, int]:
        raise NotImplementedError

    def ground_truth(self) -> dict:
        raise NotImplementedError


def rasterise(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    if isinstance(segmentation, list):
        packed = run_lengths.merge(run_lengths.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        packed = run_lengths.frPyObjects(segmentation, *size)
    else:
        packed = segmentation
    return run_lengths.decode(packed)
