"""Draws what explaining/attention_maps.py finds, and writes a page that explains the pictures."""

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from focal_twins.explaining.attention_maps import AttentionView, BlockAddress, KeyGroup
from focal_twins.files.atomic import write_bytes, write_text
from focal_twins.pages.page import Section, encode, page
from focal_twins.pages.page import picture as embedded
from focal_twins.phrases import counted

SIDE = 448  # pixels that a picture's short side has
WINDOW = (255, 214, 10)  # colour of the query window
QUERY = (255, 59, 48)  # of a single query
GRID = (120, 235, 255)  # of the borders between keys
BAR = 18  # height of a scale of colours
# Dark to bright, in even steps: brighter means more.
HEAT = np.array([[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]])


@dataclass(frozen=True)
class Picture:
    """Holds an image with its file name, its title, the text that explains it, and what a reader should look at."""

    name: str
    title: str
    text: str
    look: str
    image: Image.Image


@dataclass(frozen=True)
class Frame:
    """Cuts the same part, of whole tokens of the layer's map, out of the image and of maps."""

    image: Image.Image
    rows: slice
    columns: slice

    @classmethod
    def of(cls, pixels: np.ndarray, map_size: tuple[int, int], tokens: np.ndarray | None = None) -> "Frame":
        """Frame the part of the image's pixels [H, W, C] that tokens take up, with some surroundings.

        The frame is the whole image without `tokens`, and where the part would be more than half on a side.
        """
        rows, columns = slice(0, map_size[0]), slice(0, map_size[1])
        if tokens is not None:
            found = [
                _surroundings(axis, extent)
                for axis, extent in zip(np.divmod(tokens, map_size[1]), map_size, strict=True)
            ]
            if all(2 * (part.stop - part.start) <= extent for part, extent in zip(found, map_size, strict=True)):
                rows, columns = found
        height, width = pixels.shape[0] / map_size[0], pixels.shape[1] / map_size[1]
        part = pixels[
            round(rows.start * height) : round(rows.stop * height),
            round(columns.start * width) : round(columns.stop * width),
        ]
        return cls(enlarged(part), rows, columns)

    def cut(self, values: np.ndarray) -> np.ndarray:
        """Return the frame's part of a map [H, W]."""
        return values[self.rows, self.columns]

    def is_part(self, map_size: tuple[int, int]) -> bool:
        return (self.rows, self.columns) != (slice(0, map_size[0]), slice(0, map_size[1]))


def _surroundings(positions: np.ndarray, extent: int) -> slice:
    """Return the slice from the first to the last of positions along an axis, and a quarter as much on both sides."""
    first, last = int(positions.min()), int(positions.max()) + 1
    margin = max(1, (last - first) // 4)
    return slice(max(first - margin, 0), min(last + margin, extent))


def enlarged(pixels: np.ndarray) -> Image.Image:
    """Make pixels [H, W, C] an RGB image with a short side of SIDE."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    factor = SIDE / min(image.size)
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def heat(values: np.ndarray) -> np.ndarray:
    """Turn values [...] from 0 to 1 into colours [..., 3] uint8."""
    steps = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(values, steps, HEAT[:, channel]) for channel in range(3)], axis=-1).astype(np.uint8)


def spread(values: np.ndarray, size: tuple[int, int], smooth: bool = False) -> np.ndarray:
    """Enlarge a map [H, W] of tokens to the size (width, height) of a picture: [height, width]."""
    if smooth:
        image = Image.fromarray(values.astype(np.float32))
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    rows = np.arange(size[1]) * values.shape[0] // size[1]
    columns = np.arange(size[0]) * values.shape[1] // size[0]
    return values[rows[:, None], columns]


def overlaid(image: Image.Image, values: np.ndarray, smooth: bool = False) -> Image.Image:
    """Lay a map [H, W] as colours, from 0 to the map's largest value, over the image made grey and dim."""
    largest = float(values.max())
    relative = np.clip(spread(values / (largest or 1), image.size, smooth), 0, 1)
    return Image.fromarray(tinted(np.asarray(image.convert("L"), np.float32), relative))


def tinted(grey: np.ndarray, relative: np.ndarray) -> np.ndarray:
    """Dim grey levels [h, w] and colour them by values from 0 to 1, larger values more strongly: [h, w, 3]."""
    strength = (0.2 + 0.5 * np.sqrt(relative))[..., None]
    return ((grey * 0.45 + 25)[..., None] * (1 - strength) + heat(relative) * strength).astype(np.uint8)


def with_scale(image: Image.Image, largest: str) -> Image.Image:
    """Add the scale of its colours below a picture."""
    result = Image.new("RGB", (image.width, image.height + BAR + 26), "white")
    result.paste(image)
    values = np.tile(np.linspace(0, 1, image.width), (BAR, 1))
    result.paste(Image.fromarray(tinted(np.full(values.shape, 128), values)), (0, image.height + 4))
    draw, font = ImageDraw.Draw(result), ImageFont.load_default(15)
    draw.text((2, image.height + BAR + 5), "0", "black", font)
    draw.text((image.width - 2, image.height + BAR + 5), largest, "black", font, anchor="ra")
    return result


def outlined(image: Image.Image, labels: np.ndarray, colour: tuple, width: int, outside: bool = True) -> Image.Image:
    """Draw lines between tokens of different labels [H, W] (-1: none; `outside`: also along the picture's edge)."""
    result = image.copy()
    draw = ImageDraw.Draw(result)
    height, across = labels.shape
    framed = np.pad(labels, 1, constant_values=-1) if outside else np.pad(labels, 1, mode="edge")
    x = [round(column * image.width / across) for column in range(across + 1)]
    y = [round(row * image.height / height) for row in range(height + 1)]

    def inner(value, end):  # lines along the edge lie within the picture
        return min(max(value, width // 2), end - 1 - width // 2)

    for row in range(height + 1):
        for column in range(across + 1):
            here = framed[row + 1, column + 1]
            if row < height + 1 and column < across and framed[row, column + 1] != here:
                level = inner(y[row], image.height)
                draw.line([(x[column], level), (x[column + 1], level)], colour, width)
            if column < across + 1 and row < height and framed[row + 1, column] != here:
                level = inner(x[column], image.width)
                draw.line([(level, y[row]), (level, y[row + 1])], colour, width)
    return result


def members(tokens: np.ndarray, map_size: tuple[int, int]) -> np.ndarray:
    """Label a map [H, W] with 0 at the tokens given and -1 elsewhere."""
    labels = np.full(map_size[0] * map_size[1], -1)
    labels[tokens] = 0
    return labels.reshape(map_size)


def marked(image: Image.Image, view: AttentionView, frame: Frame) -> Image.Image:
    """Outline the query window in an image, and the query if it is one token."""
    if len(view.window) < view.map_size[0] * view.map_size[1]:
        image = outlined(image, frame.cut(members(view.window, view.map_size)), WINDOW, 4)
    if len(view.queries) < len(view.window):
        image = outlined(image, frame.cut(members(view.queries, view.map_size)), QUERY, 4)
    return image


def region(frame: Frame, group: KeyGroup, view: AttentionView) -> Image.Image:
    """Show what a group of keys covers: bright, each key within its own borders; the rest of the image dim."""
    labels = frame.cut(group.labels(view.map_size))
    inside = spread(labels >= 0, frame.image.size)[..., None]
    pixels = np.asarray(frame.image, np.float32)
    dim = pixels.mean(-1, keepdims=True) * 0.3
    bright = np.minimum(pixels * 0.88 + 30, 255)
    result = Image.fromarray(np.where(inside, bright, dim).astype(np.uint8))
    return marked(outlined(result, labels, GRID, 1 if group.size == 1 else 2), view, frame)


def attended(frame: Frame, density: np.ndarray, view: AttentionView, is_rooted: bool = False) -> Image.Image:
    """Draw attention per token [H, W] over a frame, with its scale: proportional, or (`is_rooted`) a square root."""
    shown = np.sqrt(density) if is_rooted else density
    scale = f"{percent(density.max())} per token" + (" (square-root scale)" if is_rooted else "")
    return with_scale(marked(overlaid(frame.image, frame.cut(shown)), view, frame), scale)


def percent(part: float) -> str:
    """Format a part of the whole as a percentage of three digits."""
    return f"{100 * part:.3g}%"


def pictures(
    pixels: np.ndarray, view: AttentionView, cam: np.ndarray, cam_block: BlockAddress, class_name: str, head: int | None
) -> list[Picture]:
    """Draw all pictures of one image, in the order in which they explain each other, two to a row.

    Args:
        pixels: [H, W, C] uint8, what the model sees.
        cam: [h, w] of Grad-CAM for the class, at the block `cam_block`.
    """
    whole = Frame.of(pixels, view.map_size)
    height, width = (side / tokens for side, tokens in zip(pixels.shape[:2], view.map_size, strict=True))
    heads = "all heads, on average" if head is None else f"head {head}"
    is_global = len(view.window) == view.map_size[0] * view.map_size[1]
    is_one = len(view.queries) == 1
    who = "" if is_global else f" with the query window (yellow, {counted(len(view.window), 'token')})"
    who += (" with" if is_global else " and") + " one query (red)" if is_one else ""
    asking = "the query attends" if is_one else "the queries of the window attend, on average,"
    made = [
        Picture(
            "image",
            "What the model sees",
            f"The image as evaluation crops it{who}. Layer {view.address} ({view.kind}) has a map of "
            f"{view.map_size[0]} x {view.map_size[1]} tokens of {height:g} x {width:g} pixels.",
            "Look at where the window lies: all pictures of attention show what its tokens take information from."
            if not is_global
            else "Look at where the query lies: all pictures of attention show what it takes information from.",
            marked(whole.image, view, whole),
        ),
        Picture(
            "grad_cam",
            f"Grad-CAM: what speaks for {class_name}",
            f"At the output of layer {cam_block}, a map of {cam.shape[0]} x {cam.shape[1]}: the brighter, the more "
            f"this part raises the score of {class_name}. It asks what decided, not who looks where.",
            "Look whether the object is bright: where the background is, the prediction rests on the background.",
            with_scale(overlaid(whole.image, cam, smooth=True), "most"),
        ),
    ]
    for number, group in enumerate(view.groups):
        covered = [cover for cover in group.covers if len(cover)]
        frame = Frame.of(pixels, view.map_size, np.concatenate([*covered, view.window]))
        closer = " Enlarged." if frame.is_part(view.map_size) else ""
        density = group.density(view.map_size)
        spreading = "; each key's is spread evenly over its tokens" if group.size > 1 else ""
        made += [
            Picture(
                f"keys_{number}",
                f"Keys: {group.name}",
                described(group, view) + closer,
                "Look at how far the bright part reaches and how large a cell is: to the layer, a cell is one value.",
                region(frame, group, view),
            ),
            Picture(
                f"attention_{number}",
                f"Attention on them: {group.share():.1%}",
                f"Where {asking} with these keys ({heads}){spreading}. The brightest token has "
                f"{percent(density.max())} of all attention.{closer}",
                "Look for cells that are brighter than their neighbours, and for what they show: where all are alike, "
                "the layer only averages.",
                attended(frame, density, view),
            ),
        ]
    if len(view.groups) > 1:
        density = view.density()
        made.append(
            Picture(
                "attention",
                "All attention together",
                f"Every granularity at once ({heads}): fine near the window, coarse far from it. Colours are by the "
                "square root, so that the little that each far token has can be seen.",
                "Look at how attention falls with the distance from the window, and for far places that are bright "
                "all the same.",
                attended(whole, density, view, is_rooted=True),
            )
        )
    return made


def described(group: KeyGroup, view: AttentionView) -> str:
    """Describe what the picture of a group's keys shows."""
    covered = [tuple(cover) for cover in group.covers if len(cover)]
    each = "single tokens" if group.size <= 1 else f"of {group.size} tokens each"
    explanation = f"Bright is what the {len(covered)} keys of this kind cover, {each}; each is one cell."
    if repeated := len(covered) - len(set(covered)):
        explanation += f" {repeated} of them repeat others, as in the original code, and count twice."
    if hidden := len(group.covers) - len(covered):
        explanation += f" {hidden} more would lie outside of the image and get no share of it."
    if wraps(group, view):
        explanation += (
            " The window is at the edge of the map, around which its neighbours wrap, as in the original code."
        )
    return explanation


def wraps(group: KeyGroup, view: AttentionView) -> bool:
    """Tell whether single tokens among the keys lie across the map's edge from the window, as v1's neighbours can."""
    if group.size != 1:
        return False
    tokens = np.unique(np.concatenate([view.window, *group.covers]))
    ends = [np.isin([0, extent - 1], axis).all() for axis, extent in _axes(tokens, view)]
    gaps = [np.diff(np.unique(axis)).max(initial=0) > 1 for axis, _ in _axes(tokens, view)]
    return any(end and gap for end, gap in zip(ends, gaps, strict=True))


def _axes(tokens: np.ndarray, view: AttentionView):
    """Pair the tokens' rows with the map's height, then their columns with its width."""
    return zip(np.divmod(tokens, view.map_size[1]), view.map_size, strict=True)


def overview(made: list[Picture], columns: int = 2) -> Image.Image:
    """Arrange the pictures side by side, each under its title."""
    margin, heading = 12, 30
    rows = [made[first : first + columns] for first in range(0, len(made), columns)]
    heights = [max(picture.image.height for picture in row) + heading + margin for row in rows]
    width = max(picture.image.width for picture in made) + margin
    sheet = Image.new("RGB", (columns * width + margin, sum(heights) + margin), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(20)
    top = margin
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            draw.text((margin + column * width, top), picture.title, "black", font)
            sheet.paste(picture.image, (margin + column * width, top + heading))
        top += height
    return sheet


READING = {
    "focal attention": "All tokens of a small window ask at once where to take information from: nearby they see "
    "single tokens, farther away pooled ones, which stand for many tokens each.",
    "locally-grouped attention": "The tokens of a window take information from each other only; the blocks between "
    "these attend to all of the image.",
    "global sub-sampled attention": "Every token takes information from all of the image, seen as a coarser map.",
}
LIMITS = "Attention says where a layer looks, not what decides: that is Grad-CAM's question."


def explained(
    title: str, kind: str, made: list[Picture], files: list[bytes], predictions: list[tuple[str, float]]
) -> str:
    """Make a page that holds all pictures, given as PNG `files`, in itself; `kind` is that of the attention."""
    rows = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="number">{p:.2%}</td>'
        f'<td class="bar"><div style="width:{p:.1%}"></div></td></tr>'
        for name, p in predictions
    )
    figures = "".join(
        f"<figure>{embedded(file, 'png', picture.title, is_small=False)}"
        f"<figcaption><b>{html.escape(picture.title)}</b>{html.escape(picture.text)} "
        f"<em>{html.escape(picture.look)}</em></figcaption></figure>"
        for picture, file in zip(made, files, strict=True)
    )
    return page(
        title,
        f"{READING[kind]} {LIMITS}",
        [
            Section("Prediction", f'<table class="bars">{rows}</table>'),
            Section("Pictures", f'<div class="pictures">{figures}</div>'),
        ],
    )


def write_pictures(
    folder: Path, title: str, kind: str, made: list[Picture], predictions: list[tuple[str, float]]
) -> None:
    """Write every picture, all of them on one sheet (overview.png), and the page (index.html).

    Raises:
        UserError: the folder cannot be written.
    """
    files = [encode(picture.image) for picture in made]
    for picture, file in zip(made, files, strict=True):
        write_bytes(folder / f"{picture.name}.png", file)
    write_bytes(folder / "overview.png", encode(overview(made)))
    write_text(folder / "index.html", explained(title, kind, made, files, predictions))
