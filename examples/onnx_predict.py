"""Classify images by an exported file, with NumPy, Pillow and onnxruntime: onnx_predict.py MODEL.onnx IMAGE ..."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def open_model(path):
    return onnxruntime.InferenceSession(path), json.loads(Path(path + ".json").read_text(encoding="utf-8"))


def read_image(file, how):
    image, alpha = Image.open(file), how["reading"]["alpha"]
    image = ImageOps.exif_transpose(image) if how["reading"]["exif"] == "apply" else image
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode[:4] == "I;16" else image
    if alpha != "drop" and image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*alpha, 255)), image.convert("RGBA"))
    return image.convert("RGB" if how["channels"] == 3 else "L")


def probabilities(session, how, image):
    size, resample = np.array([image.height, image.width]), Image.Resampling[how["interpolation"].upper()]
    new = np.maximum(how["resize"], (size * max(how["resize"] / size) + 1e-6).astype(int)).tolist()
    image = image.resize((new[1], image.height), resample).resize(new[::-1], resample)
    kept = [slice(start := round((side - part) / 2), start + part) for side, part in zip(new, how["size"], strict=True)]
    values = (np.atleast_3d(image)[tuple(kept)] * how["scale"] - how["mean"]) / how["std"]
    logits = session.run(None, {"images": values.transpose(2, 0, 1)[None].astype(np.float32)})[0][0]
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()


if __name__ == "__main__":
    model, told = open_model(sys.argv[1])
    for name in sys.argv[2:]:
        ps = probabilities(model, told["preprocessing"], read_image(name, told["preprocessing"]))
        print(name, *(f"{(told['classes'] or range(len(ps)))[i]} {ps[i]:.6f}" for i in (-ps).argsort()[:5]))
