"""Segment an image by an exported file of logits: onnx_segment.py MODEL.onnx IMAGE LABELS.png"""

import sys

import numpy as np
from bilinear import resized_maps, resized_pixels
from onnx_predict import open_model, read_image
from PIL import Image


def labels(session, how, image):
    """Return the most likely class of each pixel, by windows that slide over the resized image."""
    own, bounds, (height, width) = image.size[::-1], how["resize"] or image.size, how["window"]
    factor = min(max(bounds) / max(own), min(bounds) / min(own))
    rows, columns = (max(int(side * factor + 0.5), 1) for side in own)
    values = resized_pixels(np.atleast_3d(image), (rows, columns)) * how["scale"]
    values = ((values - how["mean"]) / how["std"]).transpose(2, 0, 1)[None].astype(np.float32)
    values = np.pad(values, ((0, 0), (0, 0), (0, max(height - rows, 0)), (0, max(width - columns, 0))))
    scores = np.zeros((*values.shape[2:], how["num_classes"] + 1))  # the last one counts windows
    steps = zip(values.shape[2:], how["window"], how["stride"], strict=True)
    ys, xs = (sorted({min(y, side - part) for y in range(0, side - part + by, by)}) for side, part, by in steps)
    for y, x in ((y, x) for y in ys for x in xs):
        logits = session.run(None, {"images": values[:, :, y : y + height, x : x + width]})[0][0]
        scores[y : y + height, x : x + width, :-1] += resized_maps(logits.transpose(1, 2, 0), (height, width))
        scores[y : y + height, x : x + width, -1] += 1
    return resized_maps((scores[:, :, :-1] / scores[:, :, -1:])[:rows, :columns], own).argmax(2)


if __name__ == "__main__":
    model, told = open_model(sys.argv[1])
    found = labels(model, told["preprocessing"], read_image(sys.argv[2], told["preprocessing"]))
    Image.fromarray(found.astype(np.uint8)).save(sys.argv[3])
    print(*(f"{told['classes'][i]} {(found == i).mean():.6f}" for i in np.unique(found)))
