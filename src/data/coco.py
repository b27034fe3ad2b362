"""Reads images with objects in COCO's format (stand-in until branch detdata has its own)."""

from src.data.dataset import Dataset


class CocoImages(Dataset):
    def image_size(self, index: int) -> tuple[int, int]:
        raise NotImplementedError

    def ground_truth(self) -> dict:
        raise NotImplementedError
