"""Makes the targets of a batch and mixes its images by mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899).

The choices are timm's. The partner of image i is image B - 1 - i of the same batch. `draw_mixing` draws the shares and
boxes first; `mix_images` and `mix_targets` then apply them to NumPy arrays. All are pure functions of their arguments,
except that images are changed in place.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mixing:
    """Describes how the images of a batch are mixed with their partners.

    Attributes:
        share: [B] share of an image in its own mixture (lambda), of pixels or of area; 1 where nothing is mixed.
        boxes: [B, 4] top, bottom, left, right of the box that an image gets from its partner, where `cut` holds.
        cut: [B] bool, cutmix (else mixup).
    """

    share: np.ndarray
    boxes: np.ndarray
    cut: np.ndarray


def is_mixing_enabled(augment) -> bool:
    """Return whether the augment section of a configuration mixes images at all."""
    return augment.mixup_prob > 0 and bool(augment.mixup or augment.cutmix or augment.cutmix_minmax)


def draw_mixing(generator: np.random.Generator, augment, batch: int, height: int, width: int) -> Mixing:
    """Draw how a batch is mixed under the augment section of a configuration.

    Mode "batch" draws once for all, "pair" once for each image and its partner, "elem" for each image. A draw is a coin
    whether to mix, one for cutmix where both are on, the share from Beta(alpha, alpha), and the box of cutmix.
    """
    draws = {"batch": 1, "pair": (batch + 1) // 2, "elem": batch}[augment.mixup_mode]
    drawn = [_draw_one(generator, augment, height, width) for _ in range(draws)]
    if augment.mixup_mode == "batch":
        drawn *= batch
    elif augment.mixup_mode == "pair":
        drawn += drawn[: batch // 2][::-1]
    share, boxes, cut = zip(*drawn, strict=True)
    return Mixing(np.array(share), np.array(boxes), np.array(cut))


def _draw_one(generator, augment, height, width) -> tuple[float, tuple[int, int, int, int], bool]:
    nothing = (1.0, (0, 0, 0, 0), False)
    if not is_mixing_enabled(augment) or generator.random() >= augment.mixup_prob:
        return nothing
    has_cutmix = bool(augment.cutmix or augment.cutmix_minmax)
    cut = has_cutmix and (not augment.mixup or generator.random() < augment.switch_prob)
    if not cut:
        return float(generator.beta(augment.mixup, augment.mixup)), (0, 0, 0, 0), False
    if augment.cutmix_minmax:
        box = draw_minmax_box(generator, height, width, augment.cutmix_minmax)
    else:
        box = draw_box(generator, height, width, float(generator.beta(augment.cutmix, augment.cutmix)))
    top, bottom, left, right = box
    # The share is that of the box that is left after clipping, not the one that was drawn.
    return 1 - (bottom - top) * (right - left) / (height * width), box, True


def draw_box(generator: np.random.Generator, height: int, width: int, share: float) -> tuple[int, int, int, int]:
    """Draw a cutmix box (top, bottom, left, right) of area 1 - share about a uniform centre, clipped to the image.

    Half a side is rounded down, as in the paper's code and the timm of the original recipes (later ones round one up).
    """
    side = math.sqrt(1 - share)
    cut_height, cut_width = int(height * side), int(width * side)
    y, x = int(generator.integers(height)), int(generator.integers(width))
    top, left = y - cut_height // 2, x - cut_width // 2
    bottom, right = y + cut_height // 2, x + cut_width // 2
    return max(top, 0), min(bottom, height), max(left, 0), min(right, width)


def draw_minmax_box(
    generator: np.random.Generator, height: int, width: int, minmax: list[float]
) -> tuple[int, int, int, int]:
    """Draw a cutmix box (top, bottom, left, right) that lies wholly inside the image.

    Its sides are uniform between two shares of the image's sides.
    """
    least, most = minmax
    cut_height = int(generator.integers(int(height * least), max(int(height * most), int(height * least) + 1)))
    cut_width = int(generator.integers(int(width * least), max(int(width * most), int(width * least) + 1)))
    top = int(generator.integers(height - cut_height + 1))
    left = int(generator.integers(width - cut_width + 1))
    return top, top + cut_height, left, left + cut_width


def mix_images(images: np.ndarray, mixing: Mixing) -> None:
    """Mix images [B, C, H, W] float32 in place: x_i = s_i x_i + (1 - s_i) x_j, or a box of x_j in x_i.

    It works pair by pair, because two images fit into the processor's cache and a batch does not.
    """
    batch = len(images)
    for i in range(batch // 2):
        pair = (i, batch - 1 - i)
        if all(mixing.share[k] == 1 for k in pair):
            continue
        shares = [_copy_partner_share(images[other], mixing, k) for k, other in zip(pair, reversed(pair), strict=True)]
        for k, partner_share in zip(pair, shares, strict=True):
            _mix_image(images[k], partner_share, mixing, k)


def _copy_partner_share(partner, mixing, k):
    """Copy the part that image k gets from its partner, before either image is changed."""
    if not mixing.cut[k]:
        return partner * np.float32(1 - mixing.share[k])
    top, bottom, left, right = mixing.boxes[k]
    return partner[:, top:bottom, left:right].copy()


def _mix_image(image, partner_share, mixing, k):
    if not mixing.cut[k]:
        image *= np.float32(mixing.share[k])
        image += partner_share
        return
    top, bottom, left, right = mixing.boxes[k]
    image[:, top:bottom, left:right] = partner_share


def soft_targets(labels: np.ndarray, num_classes: int, smoothing: float) -> np.ndarray:
    """Turn labels [B] into smoothed targets [B, num_classes] float32.

    A row is 1 - s + s / classes at the label and s / classes elsewhere, s being the smoothing.
    """
    targets = np.full((len(labels), num_classes), smoothing / num_classes, dtype=np.float32)
    targets[np.arange(len(labels)), labels] += 1.0 - smoothing
    return targets


def mix_targets(targets: np.ndarray, mixing: Mixing) -> np.ndarray:
    """Mix targets [B, classes] float32, smoothed already, in the shares of the images."""
    share = mixing.share.astype(np.float32)[:, None]
    return share * targets + (1 - share) * targets[::-1]
