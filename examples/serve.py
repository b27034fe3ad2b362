"""Classify images over HTTP: MODEL=digits.onnx uvicorn --app-dir examples serve:app; POST an image file to /predict."""

import io
import os

from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from onnx_predict import open_model, probabilities, read_image
from PIL import Image, UnidentifiedImageError

app = FastAPI(title="Classifier")
session, told = open_model(os.environ["MODEL"])


def predict(content):
    """Return the classes of an image, the most probable first."""
    found = probabilities(session, told["preprocessing"], read_image(io.BytesIO(content), told["preprocessing"]))
    names = told["classes"] or range(len(found))
    return [{"class": names[i], "probability": float(found[i])} for i in (-found).argsort()]


@app.post("/predict")
async def answer(request: Request):
    """Classify the image file that is the request's body."""
    try:
        return await run_in_threadpool(predict, await request.body())
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise HTTPException(422, "the body is not an image that can be read") from error


@app.get("/health")
def health():
    """Say which file answers."""
    return {"model": told["file"], "sha256": told["sha256"]}
