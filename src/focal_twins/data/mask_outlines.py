"""Writes masks as COCO does: polygons along the edges of pixels, and run lengths in both of their forms."""

from collections.abc import Sequence

import numpy as np


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
