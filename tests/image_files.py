"""Small sets of image files for the tests of the data pipeline."""

import zipfile
from pathlib import Path

from PIL import Image


def make_folder(path: Path, counts: dict[str, int], hidden: bool = True) -> Path:
    """Class folders of 8x8 images. Image i of class c has the grey level 20 c + i everywhere."""
    for label, (name, count) in enumerate(counts.items()):
        (path / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8), (20 * label + index,) * 3).save(path / name / f"{index:03d}.png")
    if hidden:
        (path / ".cache").mkdir()
        (path / next(iter(counts)) / "readme.txt").write_text("not an image")
    return path


def zip_folder(folder: Path) -> Path:
    """The zip file and map of a folder's images beside it, in the original's layout; the map in another order."""
    files = sorted(folder.rglob("*.png"), key=lambda file: file.name)
    classes = sorted(path.name for path in folder.iterdir() if path.name[0] != ".")
    target = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(folder))
    lines = [f"{file.relative_to(folder)}\t{classes.index(file.parent.name)}\n" for file in files]
    target.with_name(f"{folder.name}_map.txt").write_text("".join(lines))
    return target
