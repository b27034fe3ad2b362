"""Lists the figures that the authors published: size, cost, and accuracy on ImageNet-1K, ADE20K or COCO.

They stand beside the figures that are measured here.
"""

from dataclasses import dataclass

IMAGE_SIZE = (224, 224)  # size of images in the figures of classifiers

_FOCAL = "https://github.com/microsoft/Focal-Transformer (README.md, commit 57bb303)"
_TWINS = "https://github.com/Meituan-AutoML/Twins (README.md, commit c1ff671)"


@dataclass(frozen=True)
class Published:
    """Holds the published figures of a model.

    Parameters are in millions, multiply-accumulates in 10^9 an image (the authors write FLOPs), top-1 in percent.
    """

    parameters: float
    multiply_accumulates: float
    top1: float
    source: str


PUBLISHED: dict[str, Published] = {
    "focal_tiny_patch4_window7_224": Published(28.9, 4.9, 82.2, _FOCAL),
    "focal_small_patch4_window7_224": Published(51.1, 9.4, 83.6, _FOCAL),
    "focal_base_patch4_window7_224": Published(89.8, 16.4, 84.0, _FOCAL),
    "focal_tiny_useconv_patch4_window7_224": Published(30.8, 5.2, 82.7, _FOCAL),
    "focal_small_useconv_patch4_window7_224": Published(53.1, 9.7, 83.8, _FOCAL),
    "focal_base_useconv_patch4_window7_224": Published(93.3, 16.8, 84.2, _FOCAL),
    "focalv2_tiny_useconv_patch4_window7_224": Published(30.2, 5.0, 82.4, _FOCAL),
    "focalv2_small_useconv_patch4_window7_224": Published(51.5, 9.4, 83.6, _FOCAL),
    "focalv2_base_useconv_patch4_window7_224": Published(91.2, 16.4, 84.0, _FOCAL),
    "twins_pcpvt_small": Published(24.1, 3.7, 81.2, _TWINS),
    "twins_pcpvt_base": Published(43.8, 6.4, 82.7, _TWINS),
    "twins_pcpvt_large": Published(60.9, 9.5, 83.1, _TWINS),
    "twins_svt_small": Published(24.0, 2.8, 81.7, _TWINS),
    "twins_svt_base": Published(56.0, 8.3, 83.2, _TWINS),
    "twins_svt_large": Published(99.2, 14.8, 83.7, _TWINS),
}


@dataclass(frozen=True)
class PublishedSegmentor:
    """Holds the published figures of a network on ADE20K, by the name of its configuration.

    Parameters are in millions, mIoU in percent, at a single scale. Multiply-accumulates, in 10^9 an image of
    `image_size`, cannot be reproduced: the originals' code for
    this was not, and no way of counting gives them (docs/models.md).
    """

    parameters: float
    multiply_accumulates: float
    miou: float
    image_size: tuple[int, int]
    source: str


PUBLISHED_SEGMENTORS: dict[str, PublishedSegmentor] = {
    f"upernet_focal_{size}_{embedding}ade20k": PublishedSegmentor(parameters, cost, miou, image_size, _FOCAL)
    for size, parameters, cost, miou, image_size, embeddings in (
        ("tiny", 62, 998, 45.8, (512, 2048), ("", "useconv_")),
        ("small", 85, 1130, 48.0, (512, 2048), ("", "useconv_")),
        ("base", 126, 1354, 49.0, (512, 2048), ("", "useconv_")),
        ("large", 240, 3376, 54.0, (640, 2560), ("", "window12_")),
    )
    for embedding in embeddings
}


@dataclass(frozen=True)
class PublishedDetector:
    """Holds the published figures of a network on COCO, by the name of its configuration.

    Parameters are in millions, AP in percent. Multiply-accumulates are in 10^9 an image, of which size is not said.
    """

    parameters: float
    multiply_accumulates: float
    box_ap: float
    mask_ap: float | None
    source: str


PUBLISHED_DETECTORS: dict[str, PublishedDetector] = {
    f"{network}_focal_{size}_{schedule}_coco": PublishedDetector(parameters, cost, box_ap, mask_ap, _FOCAL)
    for network, size, schedule, parameters, cost, box_ap, mask_ap in (
        ("mask_rcnn", "tiny", "1x", 49, 291, 44.8, 41.0),
        ("mask_rcnn", "tiny", "3x", 49, 291, 47.2, 42.7),
        ("mask_rcnn", "small", "1x", 71, 401, 47.4, 42.8),
        ("mask_rcnn", "small", "3x", 71, 401, 48.8, 43.8),
        ("mask_rcnn", "base", "1x", 110, 533, 47.8, 43.2),
        ("mask_rcnn", "base", "3x", 110, 533, 49.0, 43.7),
        ("retinanet", "tiny", "1x", 39, 265, 43.7, None),
        ("retinanet", "tiny", "3x", 39, 265, 45.5, None),
        ("retinanet", "small", "1x", 62, 367, 45.6, None),
        ("retinanet", "small", "3x", 62, 367, 47.3, None),
        ("retinanet", "base", "1x", 101, 514, 46.3, None),
        ("retinanet", "base", "3x", 101, 514, 46.9, None),
        ("cascade_rcnn", "tiny", "3x", 87, 770, 51.5, None),
        ("atss", "tiny", "3x", 37, 239, 49.5, None),
        ("reppoints_v2", "tiny", "3x", 45, 491, 51.2, None),
        ("sparse_rcnn", "tiny", "3x", 111, 196, 49.0, None),
    )
}
