"""Find objects by an exported file of detections: onnx_detect.py MODEL.onnx IMAGE ..."""

import sys

import numpy as np
from bilinear import resized_pixels
from onnx_predict import open_model, read_image


def detections(session, how, image):
    """Return rows of x1, y1, x2, y2 in pixels of the image, score and class, best first."""
    own, bounds, canvas = np.array(image.size[::-1]), (how["short_side"], how["long_side"]), how["canvases"][0]
    sides = np.floor(own * min(max(bounds) / max(own), min(bounds) / min(own)) + 0.5)
    if (sides > canvas).any():
        sides = np.floor(own * min(np.divide(canvas, own)) + 1e-6)
    height, width = np.maximum(sides, 1).astype(int)
    values = resized_pixels(np.atleast_3d(image), (height, width)) * how["scale"]
    images = np.zeros((1, how["channels"], *canvas), np.float32)
    images[0, :, :height, :width] = ((values - how["mean"]) / how["std"]).transpose(2, 0, 1)
    rows = session.run(["detections"], {"images": images})[0][0].astype(np.float64)
    extent = [width, height] * 2
    boxes = np.clip(rows[:, :4], 0, extent) if how["clips_boxes"] else rows[:, :4]
    kept = (rows[:, 4] > 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    return np.hstack([boxes * np.divide([*image.size] * 2, extent), rows[:, 4:]])[kept]


if __name__ == "__main__":
    model, told = open_model(sys.argv[1])
    for name in sys.argv[2:]:
        for *box, score, label in detections(model, told["preprocessing"], read_image(name, told["preprocessing"])):
            print(name, told["classes"][int(label)], f"{score:.6f}", *(f"{side:.3f}" for side in box))
