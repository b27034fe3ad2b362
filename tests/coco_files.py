"""Small sets of images with COCO JSON beside them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((48, 64), (64, 48), (40, 40), (60, 36))  # (height, width)
CATEGORIES = [{"id": 20, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 7, "name": "owl"}]


def objects_of(image_id: int, size: tuple[int, int], count: int) -> list[dict]:
    """Annotations without ids: boxes of whole pixels that lie within an image, in categories in turn."""
    generator = np.random.default_rng(image_id)
    found = []
    for number in range(count):
        y, x = (int(generator.integers(0, side - 16)) for side in size)
        height, width = (int(generator.integers(8, 16)) for _ in range(2))
        polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
        found.append(
            {"image_id": image_id, "category_id": (3, 7, 20)[number % 3], "bbox": [x, y, width, height],
             "area": width * height, "iscrowd": 0, "segmentation": [polygon]}
        )  # fmt: skip
    return found


def make_coco(
    root: Path,
    split: str = "train",
    sizes: tuple[tuple[int, int], ...] = SIZES,
    change: Callable[[dict], None] | None = None,
) -> Path:
    """Write images of noise, scene00.png, scene01.png, ..., and their JSON; the last first, with 3 objects each.

    Args:
        change: changes the content of the JSON before it is written.

    Returns:
        The JSON's path, root/split.json. The images are in root/split.
    """
    (root / split).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, (height, width) in reversed(list(enumerate(sizes))):
        name = f"scene{number:02d}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / split / name)
        images.append({"id": 100 + number, "file_name": name, "height": height, "width": width})
        annotations += objects_of(100 + number, (height, width), 3)
    numbered = [{"id": number, **annotation} for number, annotation in enumerate(annotations)]
    content = {"images": images, "annotations": numbered, "categories": CATEGORIES}
    if change is not None:
        content = json.loads(json.dumps(content))
        change(content)
    path = root / f"{split}.json"
    path.write_text(json.dumps(content))
    return path
