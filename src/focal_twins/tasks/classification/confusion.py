"""Shows which classes an evaluation took for which: as a confusion matrix, and with examples."""

import html
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from focal_twins.data.decoding import Reading, UnreadableImage, decode
from focal_twins.data.image_set import ImageSet
from focal_twins.data.open_images import open_images
from focal_twins.errors import UserError
from focal_twins.pages.page import encode, picture
from focal_twins.phrases import counted

DRAWN_CLASSES = 20  # of a data set with more classes, only those that are confused most are drawn
THUMBNAIL = 168  # pixels of the long side; the page shows 84, so that dense screens show it sharp
SMALL = 48  # an image with fewer pixels a side is enlarged without smoothing
STRONGEST = 0.7  # strength of a cell's colour with all images of its row, at which the number stays readable
NO_IMAGE = "image not found"


def drawn_classes(confusion: np.ndarray) -> np.ndarray:
    """Choose the classes to draw of a matrix [labels, predictions]: of many, those of the most confused pairs."""
    if len(confusion) <= DRAWN_CLASSES:
        return np.arange(len(confusion))
    errors = confusion.copy()
    np.fill_diagonal(errors, 0)
    chosen: list[int] = []
    # Each pair adds at most two classes, so it is enough to look at some more pairs than classes.
    for index in np.argsort(-errors, axis=None, kind="stable")[: 4 * DRAWN_CLASSES**2]:
        pair = [int(c) for c in np.unravel_index(index, errors.shape) if int(c) not in chosen]
        if len(chosen) + len(pair) > DRAWN_CLASSES or not errors.flat[index]:
            break
        chosen += pair
    return np.array(sorted(chosen), int)


def confusion_table(evaluation: dict) -> str:
    """Make an HTML table of the confusion matrix of an evaluation (evaluation.json)."""
    confusion = np.asarray(evaluation["confusion"])
    classes = evaluation["classes"]
    drawn = drawn_classes(confusion)
    if not len(drawn):
        return "<p>No image is taken for one of another class.</p>"
    names = [classes[index]["name"] for index in drawn]
    part = confusion[np.ix_(drawn, drawn)]
    counts = np.array([classes[index]["count"] for index in drawn])
    heads, columns = list(names), [part[:, column] for column in range(len(drawn))]
    others = confusion[drawn].sum(axis=1) - part.sum(axis=1)
    if len(drawn) < len(confusion):
        heads.append("other classes")
        columns.append(others)
    unpredicted = counts - confusion[drawn].sum(axis=1)
    if unpredicted.any():
        heads.append("no prediction")
        columns.append(unpredicted)
    many = " many" if max(map(len, heads)) > 4 else ""
    head = "".join(f'<th scope="col"><span>{html.escape(name)}</span></th>' for name in heads)
    rows = []
    for row, name in enumerate(names):
        cells = "".join(
            _cell(int(column[row]), int(counts[row]), name, heads[index], row == index)
            for index, column in enumerate(columns)
        )
        rows.append(f'<tr><th scope="row">{html.escape(name)}</th>{cells}<td class="none">{counts[row]}</td></tr>\n')
    caption = "Rows are true classes, columns predictions; colours are shares of a row, the last column its images."
    if len(drawn) < len(confusion):
        caption += f" The {len(drawn)} of {len(confusion)} classes that are confused most."
    return (
        f'<div class="scroll" tabindex="0"><table class="confusion{many}" id="confusion"><caption>{caption}</caption>'
        f'<thead><tr><td></td>{head}<th scope="col"><span>images</span></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(images: int, total: int, label: str, predicted: str, is_right: bool) -> str:
    if not images:
        return '<td class="none">0</td>'
    share = images / total
    title = html.escape(f"{label} taken for {predicted}: {images} of {total} ({share:.1%})", quote=True)
    strength = STRONGEST * (0.15 + 0.85 * share)  # the colour of a single image must be visible too
    kind = "right" if is_right else "wrong"
    return f'<td class="{kind}" style="--share:{strength:.3f}" title="{title}">{images}</td>'


def image_finder(
    data: dict, moved_to: Path | None, roots: list[Path], classes: tuple[str, ...]
) -> Callable[[str], bytes | None]:
    """Return a function that finds the file content of an evaluation image by its name, or None.

    Args:
        data: the data section of the run's configuration.
        moved_to: folder that holds the images now; None where it is still data.path, which may be gone too.
        roots: folders that a relative data.path may begin from.
        classes: names of the classes, for formats that do not say them.

    Raises:
        UserError: `moved_to` does not hold the images.
    """
    split = data.get("train", "train") if data.get("val_fraction") else data.get("val", "val")
    if moved_to is not None:
        return _content_finder(open_images(moved_to, split, classes))
    for root in roots:
        try:
            return _content_finder(open_images(root / data["path"], split, classes))
        except (UserError, OSError, KeyError, TypeError):
            continue
    return lambda name: None


def _content_finder(images: ImageSet) -> Callable[[str], bytes | None]:
    index_of = {name: index for index, name in enumerate(images.names)}

    def find(name: str) -> bytes | None:
        try:
            return images.content(index_of[name]).tobytes()
        except (KeyError, OSError):
            return None

    return find


def thumbnail(content: bytes | None, name: str, reading: Reading) -> str:
    """Make an HTML picture of an image file, reduced in size; make a note where the file is missing or damaged."""
    try:
        if content is None:
            raise UnreadableImage(NO_IMAGE)
        image = Image.fromarray(decode(np.frombuffer(content, np.uint8), 3, reading))
    except UnreadableImage as problem:
        return f'<span class="missing" title="{html.escape(name, quote=True)}">{html.escape(str(problem))}</span>'
    is_small = max(image.size) < SMALL
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    content = encode(image) if is_small else encode(image, "jpeg", quality=85)
    return picture(content, "png" if is_small else "jpeg", name, is_small)


def confused_pairs(evaluation: dict, find: Callable[[str], bytes | None], reading: Reading) -> str:
    """Show as HTML the pairs of classes that are confused most, with images of the one taken for the other.

    Args:
        find: finds the content of an image file by its name.
        reading: says how files become pixels.
    """
    counts = {entry["name"]: entry["count"] for entry in evaluation["classes"]}
    pairs = []
    for pair in evaluation["most_confused"]:
        label, predicted = html.escape(pair["label"]), html.escape(pair["predicted"])
        images = "".join(thumbnail(find(name), name, reading) for name in pair["images"])
        pairs.append(
            f'<div class="pair"><b>{label}</b> taken for <b>{predicted}</b>: {pair["count"]} of '
            f"{counted(counts[pair['label']], 'image')}<div>{images}</div></div>"
        )
    return f'<div class="pairs">{"".join(pairs)}</div>' if pairs else ""
