"""Writes and reads evaluation.json: the content of an evaluation, and the arrays that belong to it."""

import io
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np

from focal_twins.data.dataset import Dataset
from focal_twins.errors import UserError
from focal_twins.files.atomic import write_bytes, write_text

LISTED_ROWS = 100  # an array of more rows is a NumPy file beside the report: as JSON it would take megabytes
WEIGHTS_NAMES = {"raw": "raw weights", "ema": "averaged weights (EMA)"}  # for people
SHORT_NAMES = {"raw": "raw", "ema": "EMA"}  # the same in tables
PICTURES = "pictures"  # key of the content that names the file of the pictures
FILES = "files"  # key of the content that names further files


def write_evaluation(
    path: Path,
    content: dict,
    arrays: dict[str, np.ndarray],
    pictures: dict[str, bytes] | None = None,
    files: dict[str, bytes] | None = None,
) -> None:
    """Write an evaluation's content, with each array as a list of rows or as the name of a NumPy file beside it.

    Args:
        pictures: files of pictures by name; they go into a ZIP file beside the report, which the content names.
        files: contents of further files by the ends of their names: "results.json" of evaluation.json goes into
            evaluation_results.json. The content lists their names.

    Raises:
        UserError: no room or no permission.
    """
    content = dict(content)
    for key, array in arrays.items():
        if len(array) <= LISTED_ROWS:
            content[key] = array.tolist()
        else:
            array_path = path.with_name(f"{path.stem}_{key}.npy")
            buffer = io.BytesIO()
            np.save(buffer, array)
            write_bytes(array_path, buffer.getvalue())
            content[key] = array_path.name
    if pictures:
        pictures_path = path.with_name(f"{path.stem}_{PICTURES}.zip")
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for name, picture in pictures.items():
                file.writestr(zipfile.ZipInfo(name), picture)
        write_bytes(pictures_path, buffer.getvalue())
        content[PICTURES] = pictures_path.name
    for end, written in (files or {}).items():
        write_bytes(path.with_name(f"{path.stem}_{end}"), written)
    if files:
        content[FILES] = [f"{path.stem}_{end}" for end in files]
    write_text(path, _format_json(content))


def read_array(path: Path, value: list | str) -> np.ndarray:
    """Return an array of an evaluation file: its rows, or the content of the file named beside it.

    Raises:
        UserError: the file cannot be read.
    """
    if not isinstance(value, str):
        return np.array(value, object)
    array_path = path.with_name(value)
    try:
        return np.load(array_path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{array_path}: cannot be read ({' '.join(str(error).split())})") from error


def read_pictures(path: Path, content: dict) -> dict[str, bytes]:
    """Return the pictures of an evaluation file by name; none where their file is missing or damaged.

    Args:
        content: the content of the evaluation file at `path`.
    """
    name = content.get(PICTURES)
    if not isinstance(name, str):
        return {}
    try:
        with zipfile.ZipFile(path.with_name(name)) as file:
            return {picture: file.read(picture) for picture in file.namelist()}
    except (OSError, zipfile.BadZipFile, zlib.error):
        return {}


def evaluation_path(checkpoint: Path, weights: str, data: Dataset) -> Path:
    """Return the default path of a checkpoint's evaluation: in its run's folder or, without a run, beside it.

    The name tells the checkpoint, its weights and the data apart: runs/NAME/eval_best_ema_val.json.
    """
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    held_back = "_held_back" if data.is_held_back else ""
    return folder / f"eval_{checkpoint.stem}_{weights}_{data.path.name}{held_back}.json"


def check_keys(content: object, needed: set[str], what: str) -> None:
    """Check that content is a JSON object with the needed keys.

    Args:
        what: name of the content in messages.

    Raises:
        UserError: keys are missing; the message names them.
    """
    if not isinstance(content, dict) or not needed <= content.keys():
        missing = ", ".join(sorted(needed - content.keys())) if isinstance(content, dict) else "an object"
        raise UserError(f"{what} lacks {missing}; was it written by this version?")


def _format_json(content: dict) -> str:
    """Format an object as JSON with a line for every key and every row of a table."""

    def value(item):
        is_table = isinstance(item, list) and item and isinstance(item[0], dict | list)
        return "[\n    " + ",\n    ".join(map(json.dumps, item)) + "\n  ]" if is_table else json.dumps(item)

    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {value(item)}" for key, item in content.items()) + "\n}\n"


def evaluated_weights(content: dict) -> str:
    """Say which weights an evaluation is of: "Raw weights after epoch 3"."""
    weights = WEIGHTS_NAMES[content["weights"]]
    return f"{weights[0].upper()}{weights[1:]} after epoch {content['epoch']}"


def classes_listed(names: list[str], of_one: str, of_several: str) -> str:
    """Say something of classes, with the first names: " 2 classes have no object: cat, dog."; nothing of none.

    Args:
        of_one, of_several: what is said, as "has no object" and "have no object".
    """
    if not names:
        return ""
    listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    said = f"class {of_one}" if len(names) == 1 else f"classes {of_several}"
    return f" {len(names)} {said}: {listed}."
