"""Write scenes of handwritten digits for segmentation and detection: python scripts/prepare_digit_scenes.py

The scenes are made of what scikit-learn brings, so nothing is downloaded: its 1,797 scanned digits (8x8), enlarged,
rotated, overlapping, in several grey levels, upon pieces of its two photographs in grey, dimmed. Ink is lighter than
the photograph, as it is in the scans, so that a classifier of the scans knows it. Validation scenes show only the scans
that scripts/prepare_digits.py holds out, on the lower part of the photographs; training scenes show the others, on the
upper part. The folder has the layout of ADE20K, and COCO JSON beside it:

    images/{training,validation}/00000.jpg          grey, all of one size
    annotations/{training,validation}/00000.png     0 is the background, 1 to 10 are the digits 0 to 9
    annotations/instances_{training,validation}.json
    classes.txt                                     the names of the labels, one a line

COCO's categories have the labels' numbers. A mask is what can be seen of the digit's ink: polygons along the edges of
its pixels where it has no hole, otherwise RLE as a string. A crowd is a heap of small scans of one digit; it is one
annotation with iscrowd 1 and RLE as a list. "scans" names the scans of an annotation. Some images are empty.
The same options give the same files. A folder that is already whole is left alone.
"""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for scripts.X
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from focal_twins.cli import Parser, run
from focal_twins.errors import UserError
from scripts.prepare_digits import split_scans

SPLITS = ("training", "validation")
CLASSES = ("background", *map(str, range(10)))
CROWD_SIZE = (5, 9)
CROWD_HEIGHT = (0.11, 0.17)  # of the scene's side
MARGIN = 16  # rows of a photograph between the part of the training scenes and that of the validation scenes
CONTRAST = 130  # grey levels by which a digit is lighter than the mean of the photograph under it, at least
JPEG_QUALITY = 95
INK = 0.4  # of a pixel that belongs to a digit; strokes of the scans are grey at their edges


@dataclass(frozen=True)
class Recipe:
    """Says what the scenes look like; it is written into the JSON files, by which a folder is recognised.

    Args:
        training, validation: number of scenes.
        size: side of a scene in pixels.
        seed: of all that is drawn.
        digits: how many a scene has, from and to.
        height: of a scan by the scene's side, from and to.
        rotation: largest angle in degrees, to either side.
        overlapping: share of digits that may lie on others; the boxes of the rest keep clear of those before.
        visible: what must stay to be seen of a digit's ink where others lie on it.
        empty, crowds: one scene in so many has no digit, or a crowd.
        photograph: share of the photographs' height that belongs to the training scenes.
        light: of the photographs, from and to; 1 leaves them as they are.
    """

    training: int = 1300
    validation: int = 200
    size: int = 96
    seed: int = 0
    digits: tuple[int, int] = (2, 6)
    height: tuple[float, float] = (0.34, 0.48)
    rotation: float = 10.0
    overlapping: float = 0.06
    visible: float = 0.8
    empty: int = 20
    crowds: int = 24
    photograph: float = 0.6
    light: tuple[float, float] = (0.05, 0.3)


@dataclass
class Instance:
    """Is one digit, or one crowd: the scans it is made of, their grey levels, and where its ink can be seen.

    Args:
        mask: [size, size] bool.
        whole: pixels of the mask when nothing lay on it.
    """

    digit: int
    scans: list[int]
    levels: list[float]
    mask: np.ndarray
    whole: int
    crowd: bool


@dataclass(frozen=True)
class Material:
    """Holds what the scenes of one split are made of: scans [8, 8] from 0 to 1 with digits, and grey photographs."""

    scans: dict[int, np.ndarray]
    digits: dict[int, int]
    photographs: list[np.ndarray]


def load_material(share: float) -> dict[str, Material]:
    """Load each split's scans and parts of the photographs, of which `share` belongs to the training scenes."""
    data = load_digits()
    greys = [np.asarray(Image.fromarray(photograph).convert("L")) for photograph in load_sample_images().images]
    rows = [int(len(grey) * share) for grey in greys]
    parts = (
        [grey[:row] for grey, row in zip(greys, rows, strict=True)],
        [grey[row + MARGIN :] for grey, row in zip(greys, rows, strict=True)],
    )
    return {
        split: Material(
            {number: data.images[number] / 16 for number in numbers},  # grey levels are 0 (empty) to 16 (ink)
            {number: int(data.target[number]) for number in numbers},
            photographs,
        )
        for split, numbers, photographs in zip(SPLITS, split_scans(data.target), parts, strict=True)
    }


def draw_background(generator: np.random.Generator, photographs: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Cut a square out of a photograph, smaller or larger than the scene, and resize it to [size, size] float32."""
    photograph = photographs[generator.integers(len(photographs))]
    side = int(min(size * generator.uniform(0.7, 1.4), *photograph.shape))
    top, left = (int(generator.integers(length - side + 1)) for length in photograph.shape)
    square = Image.fromarray(photograph[top : top + side, left : left + side])
    background = np.asarray(square.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    return background[:, ::-1] if generator.random() < 0.5 else background


def draw_ink(generator: np.random.Generator, scan: np.ndarray, height: float, rotation: float) -> np.ndarray:
    """Enlarge a scan to `height` pixels and rotate it; returns how much ink each pixel has, 0 to 1, without margins."""
    padded = np.pad(scan, 1).astype(np.float32)  # strokes reach the scan's border and would end there as if cut off
    side = max(10, round(height * 10 / 8))
    enlarged = Image.fromarray(padded).resize((side, side), Image.Resampling.BICUBIC)
    turned = enlarged.rotate(generator.uniform(-rotation, rotation), Image.Resampling.BICUBIC, expand=True)
    ink = np.clip(np.asarray(turned), 0, 1)  # soft edges, as the classifier's enlarged scans have
    rows, columns = (np.flatnonzero(ink.max(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def draw_level(generator: np.random.Generator, below: float, beside: Sequence[float]) -> float:
    """Draw the grey level of a digit.

    Args:
        below: mean level of the photograph under it.
        beside: levels of the digits that it partly covers, from which it shall differ.
    """
    candidates = generator.uniform(below + CONTRAST, 255, 4 if beside else 1).tolist()
    return max(candidates, key=lambda level: min((abs(level - other) for other in beside), default=0.0))


def put(image: np.ndarray, ink: np.ndarray, top: int, left: int, level: float) -> None:
    """Lay ink of a grey level on an image."""
    place = image[top : top + ink.shape[0], left : left + ink.shape[1]]
    place += ink * (level - place)


def mask_of(ink: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    """Give the pixels of a scene [size, size] that ink covers by half or more."""
    mask = np.zeros((size, size), bool)
    mask[top : top + ink.shape[0], left : left + ink.shape[1]] = ink >= INK
    return mask


def draw_scene(
    generator: np.random.Generator, material: Material, recipe: Recipe, number: int
) -> tuple[np.ndarray, list[Instance]]:
    """Draw a scene: its image [size, size] uint8 and its instances, whose masks do not overlap.

    Args:
        number: of the scene, which decides whether it is empty and whether it has a crowd.
    """
    size = recipe.size
    background = draw_background(generator, material.photographs, size) * np.float32(generator.uniform(*recipe.light))
    image = background.copy()
    instances: list[Instance] = []

    def place(
        scans: list[int], inks: list[np.ndarray], corners: list[tuple[int, int]], crowd: bool, apart: bool
    ) -> bool:
        """Lay an instance on the others, unless too little could be seen of one of them, or of any with `apart`."""
        masks = [mask_of(ink, *corner, size) for ink, corner in zip(inks, corners, strict=True)]
        mask = np.any(masks, axis=0)
        if apart and any(boxes_meet(instance.mask, mask) for instance in instances):
            return False
        covered = [instance for instance in instances if (instance.mask & mask).any()]
        if any((instance.mask & ~mask).sum() < recipe.visible * instance.whole for instance in covered):
            return False
        beside = [level for instance in covered for level in instance.levels]
        levels = []
        for own, ink, corner in zip(masks, inks, corners, strict=True):
            levels.append(draw_level(generator, float(background[own].mean()), beside))
            put(image, ink, *corner, levels[-1])
        for instance in covered:
            instance.mask &= ~mask
        instances.append(Instance(material.digits[scans[0]], scans, levels, mask, int(mask.sum()), crowd))
        return True

    is_empty = number % recipe.empty == recipe.empty - 1
    count = 0 if is_empty else int(generator.integers(recipe.digits[0], recipe.digits[1] + 1))
    if number % recipe.crowds == recipe.crowds - 1 and not is_empty:
        place(*draw_crowd(generator, material, recipe), crowd=True, apart=False)
    scans = list(material.scans)
    for _ in range(count):
        scan = scans[generator.integers(len(scans))]
        height = size * np.exp(generator.uniform(*np.log(recipe.height)))
        ink = draw_ink(generator, material.scans[scan], height, recipe.rotation)
        apart = generator.random() >= recipe.overlapping
        for _ in range(40):  # a scene that has no room left gets fewer digits
            if place([scan], [ink], [draw_corner(generator, ink, size)], False, apart):
                break
    noisy = image + generator.normal(0, 3, image.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8), instances


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Give the top, bottom, left and right of a mask; bottom and right are the first pixels behind it."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def boxes_meet(one: np.ndarray, other: np.ndarray) -> bool:
    """Say whether the boxes around two masks have a pixel in common."""
    (top, bottom, left, right), (t, b, le, r) = box_of(one), box_of(other)
    return top < b and t < bottom and left < r and le < right


def draw_corner(generator: np.random.Generator, ink: np.ndarray, size: int) -> tuple[int, int]:
    """Draw the top left corner, row and column, of ink that lies within a scene."""
    rows, columns = ink.shape
    return int(generator.integers(size - rows + 1)), int(generator.integers(size - columns + 1))


def draw_crowd(
    generator: np.random.Generator, material: Material, recipe: Recipe
) -> tuple[list[int], list[np.ndarray], list[tuple[int, int]]]:
    """Draw the scans of a crowd, their ink, and their top left corners around one point."""
    digit = int(generator.integers(10))
    numbers = [number for number, its_digit in material.digits.items() if its_digit == digit]
    scans = generator.choice(numbers, int(generator.integers(CROWD_SIZE[0], CROWD_SIZE[1] + 1)), replace=False).tolist()
    heights = recipe.size * generator.uniform(*CROWD_HEIGHT, len(scans))
    inks = [draw_ink(generator, material.scans[n], h, recipe.rotation) for n, h in zip(scans, heights, strict=True)]
    centre = generator.uniform(0.25, 0.75, 2) * recipe.size
    corners = []
    for ink in inks:
        corner = centre + generator.normal(0, 0.09 * recipe.size, 2) - np.array(ink.shape) / 2
        row, column = np.clip(corner, 0, recipe.size - np.array(ink.shape)).astype(int).tolist()
        corners.append((row, column))
    return scans, inks, corners


def outlines(mask: np.ndarray) -> tuple[list[list[int]], bool]:
    """Trace the edges between pixels that bound a mask; pixels that touch at a corner alone are apart.

    Args:
        mask: [height, width] bool.

    Returns:
        The outer outlines as COCO's polygons [x0, y0, x1, y1, ...], and whether the mask has holes.
    """
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    # Clockwise around each pixel: the neighbour behind the edge, the corner where the edge begins, and its direction.
    sides = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (0, 1)),
        (padded[2:, 1:-1], (1, 1), (-1, 0)),
        (padded[1:-1, :-2], (0, 1), (0, -1)),
    )
    edges: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for neighbour, (x0, y0), direction in sides:
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            edges.setdefault((x + x0, y + y0), []).append(direction)
    polygons, holes = [], False
    while edges:
        start = point = next(iter(edges))
        direction = edges[start][0]
        corners: list[int] = []
        doubled_area = 0
        while True:
            choices = edges[point]
            turn = (-direction[1], direction[0])  # clockwise, which stays at the same pixel where two touch at a corner
            following = turn if turn in choices else choices[0]
            choices.remove(following)
            if not choices:
                del edges[point]
            if following != direction or not corners:
                corners += point
            x, y = point
            point, direction = (x + following[0], y + following[1]), following
            doubled_area += x * point[1] - point[0] * y
            if point == start:
                break
        if doubled_area > 0:
            polygons.append(corners)
        else:
            holes = True
    return polygons, holes


def run_lengths(mask: np.ndarray) -> list[int]:
    """Count the pixels of the runs of a mask [height, width], column by column; the first run is outside of it."""
    pixels = np.asarray(mask, bool).ravel(order="F")
    bounds = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    lengths = np.diff([0, *bounds, pixels.size]).tolist()
    return [0, *lengths] if pixels[0] else lengths


def packed_lengths(lengths: Sequence[int]) -> str:
    """Pack run lengths into COCO's string: differences to the length before the last, five bits a character."""
    text = ""
    for index, length in enumerate(lengths):
        rest = length - lengths[index - 2] if index > 2 else length
        more = True
        while more:
            bits = rest & 31
            rest >>= 5
            more = rest != (-1 if bits & 16 else 0)
            text += chr((bits | (32 if more else 0)) + 48)
    return text


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


def main(arguments: list[str]) -> None:
    parser = Parser(prog="prepare_digit_scenes.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    default = Recipe()
    parser.add_argument("--output", type=Path, default=Path("data/digit_scenes"), metavar="FOLDER")
    for split in SPLITS:
        number = getattr(default, split)
        parser.add_argument(f"--{split}", type=int, default=number, metavar="N", help=f"number of scenes ({number})")
    parser.add_argument("--size", type=int, default=default.size, metavar="PIXELS", help=f"side ({default.size})")
    parser.add_argument("--seed", type=int, default=default.seed, help=f"of all that is drawn ({default.seed})")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(arguments)
    for name, least in (("training", 1), ("validation", 1), ("size", 48), ("seed", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} {getattr(options, name)}: must be at least {least}")
    recipe = replace(default, **{name: getattr(options, name) for name in ("training", "validation", "size", "seed")})
    output = options.output
    if is_whole(output, recipe):
        print(f"{output}: {recipe.training} training and {recipe.validation} validation scenes are there already")
        return
    own = {"images", "annotations", "classes.txt"}
    if output.exists() and not (output.is_dir() and {path.name for path in output.iterdir()} <= own):
        raise UserError(f"{output} holds something else; name another folder with --output")
    try:
        written = write_scenes(output, recipe)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from error
    print(f"{output}: wrote {' and '.join(written)}")


if __name__ == "__main__":
    sys.exit(run(main, "prepare_digit_scenes.py"))
