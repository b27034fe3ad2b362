"""Pastes the small masks of detections into images of any size, and packs them as COCO does, one at a time.

A mask is a square of probabilities that lies over the box of its detection. Each pixel whose centre is in the box, or
within half a cell of it, takes its value between the four nearest cells; from a half on it belongs to the object.

Source: mmdetection 2.11, mask_heads/fcn_mask_head.py, _do_paste_mask: grid_sample with align_corners=False and zeros
outside. The values along rows and columns are apart, so a mask is two products with small matrices.
"""

import numpy as np
from pycocotools import mask as coco_masks

STRIP = 1 << 20  # pixels of a mask that are computed at once
THRESHOLD = 0.5


def paste_mask(mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels [H, W] uint8 of an image that belong to an object, 1, or not, 0, in columns of memory.

    Args:
        mask: [M, M] probabilities. box: (x1, y1, x2, y2) in pixels of the image. size: (H, W) of the image.
    """
    pasted = np.zeros(size, np.uint8, order="F")
    x1, y1, x2, y2 = (float(value) for value in box)
    if x2 <= x1 or y2 <= y1:
        return pasted
    top, rows = _interpolation(y1, y2, size[0], mask.shape[0])
    left, columns = _interpolation(x1, x2, size[1], mask.shape[1])
    lines = rows @ mask.astype(np.float32)  # [h, M]
    step = max(STRIP // max(len(rows), 1), 1)
    for first in range(0, len(columns), step):
        part = columns[first : first + step]
        inside = lines @ part.T >= THRESHOLD
        pasted[top : top + len(rows), left + first : left + first + len(part)] = inside
    return pasted


def _interpolation(low: float, high: float, side: int, cells: int) -> tuple[int, np.ndarray]:
    """Return the first pixel near an interval of a side, and the weights [pixels, cells] of the cells for each."""
    margin = (high - low) / (2 * cells)  # beyond it, the values are those of zeros outside of the mask
    first, last = max(int(np.floor(low - margin)), 0), min(int(np.ceil(high + margin)), side)
    centres = np.arange(first, max(last, first), dtype=np.float32) + np.float32(0.5)
    places = (centres - np.float32(low)) / np.float32(high - low) * cells - np.float32(0.5)  # in cells
    weights = 1 - np.abs(places[:, None] - np.arange(cells, dtype=np.float32))
    return first, np.maximum(weights, 0)


def packed_masks(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> list[bytes]:
    """Return the masks [n, M, M] of boxes [n, 4], pasted into an image of (H, W), as COCO's run lengths, compressed.

    At most one mask of the image's size is in memory.
    """
    return [coco_masks.encode(paste_mask(mask, box, size))["counts"] for mask, box in zip(masks, boxes, strict=True)]
