"""Writes the folder of scenes of handwritten digits, in the layout of ADE20K with COCO JSON beside it.

    images/{training,validation}/00000.jpg          grey, all of one size
    annotations/{training,validation}/00000.png     0 is the background, 1 to 10 are the digits 0 to 9
    annotations/instances_{training,validation}.json
    classes.txt                                     the names of the labels, one a line

COCO's categories have the labels' numbers. A mask is what can be seen of the digit's ink: polygons along the edges of
its pixels where it has no hole, otherwise RLE as a string. A crowd is a heap of small scans of one digit; it is one
annotation with iscrowd 1 and RLE as a list. "scans" names the scans of an annotation. Some images are empty.
"""

import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from focal_twins.data.digit_scenes import SPLITS, Instance, Material, Recipe, box_of, draw_scene, load_material
from focal_twins.data.mask_outlines import outlines, packed_lengths, run_lengths

CLASSES = ("background", *map(str, range(10)))
JPEG_QUALITY = 95


def annotation_of(instance: Instance) -> dict:
    """Describe an instance as COCO does, without the numbers of the annotation and its image."""
    top, bottom, left, right = box_of(instance.mask)
    polygons, holes = outlines(instance.mask)
    lengths = run_lengths(instance.mask)
    size = list(instance.mask.shape)
    return {
        "category_id": instance.digit + 1,
        "bbox": [left, top, right - left, bottom - top],
        "area": int(instance.mask.sum()),
        "iscrowd": int(instance.crowd),
        "segmentation": {"size": size, "counts": lengths}
        if instance.crowd
        else {"size": size, "counts": packed_lengths(lengths)}
        if holes
        else polygons,
        "scans": instance.scans,
    }


def write_split(folder: Path, split: str, material: Material, recipe: Recipe) -> str:
    """Write the scenes of one split; returns what there is, in words."""
    images: list[dict] = []
    annotations: list[dict] = []
    for kind in ("images", "annotations"):
        (folder / kind / split).mkdir(parents=True)
    for number in range(getattr(recipe, split)):
        generator = np.random.default_rng([recipe.seed, SPLITS.index(split), number])
        image, instances = draw_scene(generator, material, recipe, number)
        label = np.zeros(image.shape, np.uint8)
        images.append({"id": number, "file_name": f"{number:05d}.jpg", "width": recipe.size, "height": recipe.size})
        for instance in instances:
            label[instance.mask] = instance.digit + 1
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation_of(instance)})
        Image.fromarray(image).save(folder / f"images/{split}/{number:05d}.jpg", quality=JPEG_QUALITY)
        Image.fromarray(label).save(folder / f"annotations/{split}/{number:05d}.png")
    content = {
        "info": information(recipe),
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES) if number > 0],
    }
    description(folder, split).write_text(json.dumps(content) + "\n", encoding="utf-8")
    counts = Counter(annotation["iscrowd"] for annotation in annotations)
    empty = len(images) - len({annotation["image_id"] for annotation in annotations})
    return f"{len(images)} {split} scenes with {counts[0]} digits and {counts[1]} crowds ({empty} empty)"


def information(recipe: Recipe) -> dict:
    """Give the JSON files' "info", by which a folder that is already whole is recognised."""
    made_by = "scripts/prepare_digit_scenes.py, of scikit-learn's digits (UCI) and photographs (CC BY)"
    return {"description": made_by, "recipe": json.loads(json.dumps(asdict(recipe)))}


def description(folder: Path, split: str) -> Path:
    """Give the path of a split's COCO JSON."""
    return folder / f"annotations/instances_{split}.json"


def is_whole(folder: Path, recipe: Recipe) -> bool:
    """Say whether a folder has what the recipe makes."""
    try:
        found = [json.loads(description(folder, split).read_text(encoding="utf-8"))["info"] for split in SPLITS]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all(info == information(recipe) for info in found) and all(
        len(list((folder / kind / split).iterdir())) == getattr(recipe, split)
        for kind in ("images", "annotations")
        for split in SPLITS
    )


def write_scenes(output: Path, recipe: Recipe) -> list[str]:
    """Write all splits beside the folder of that name, and put them in its place; return what each has, in words."""
    partial = output.with_name(output.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)  # of an attempt that was interrupted
    materials = load_material(recipe.photograph)
    written = [write_split(partial, split, materials[split], recipe) for split in SPLITS]
    (partial / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
    if output.exists():
        shutil.rmtree(output)
    partial.rename(output)
    return written
