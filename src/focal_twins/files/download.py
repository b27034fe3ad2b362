"""Finds published weights on this machine by their names, and downloads them when a user asks for it.

Nothing is ever downloaded by looking for it. A file gets its name when it is whole and its checksum, where one was
published, is right; what was downloaded in part is in the cache of the Hugging Face hub, which goes on with it.
"""

import os
import shutil
from pathlib import Path

from focal_twins.errors import UserError
from focal_twins.files.atomic import replacing
from focal_twins.files.file_digest import sha256
from focal_twins.files.published_weights import CLOSED, PUBLISHED_WEIGHTS, PublishedWeights

FOLDER = Path("weights")


class DownloadError(UserError):
    """Says that published weights are not here, are damaged, or cannot be downloaded, and what to do."""


def locate(name: str, folder: Path = FOLDER) -> tuple[Path, PublishedWeights | None]:
    """Return the path that stands for a file or for published weights, and the latter's description.

    Args:
        name: a path; the name of published weights, such as twins_svt_small.in1k or timm/twins_svt_small.in1k; or a
            path whose last part is their file's name. A file that is there is taken as it is, whatever its name.
        folder: where files of published weights are.
    """
    path = Path(name).expanduser()
    weights = None if path.is_file() else find_published(name)
    return (folder / weights.file if weights and path.name == weights.name else path), weights


def find_published(name: str | Path) -> PublishedWeights | None:
    """Return the published weights of a name, or of a path to their file; None where there are none."""
    last = Path(name).name
    return next((weights for weights in PUBLISHED_WEIGHTS.values() if last in (weights.name, weights.file)), None)


def weights_file(name: str) -> Path:
    """Return the file that a path or the name of published weights stands for; a path may be of no file.

    Raises:
        DownloadError: published weights that are not here, in one line that says how to get them, or are damaged.
    """
    path, weights = locate(name)
    if weights is not None:
        if not path.is_file():
            raise DownloadError(f"{name}: {how_to_get(weights, path)}")
        check(weights, path)
    return path


def how_to_get(weights: PublishedWeights, path: Path) -> str:
    """Say how the file of published weights comes to a path."""
    if weights.repository is not None:
        size = f" ({weights.size})" if weights.size else ""
        return (
            f"not downloaded yet; python scripts/download_weights.py {weights.name} (or, in training, "
            f"train.download=true) fetches {weights.address}{size} to {path}"
        )
    if weights.is_closed:
        return (
            f"not here, and its authors' link is closed ({CLOSED}); a copy of their file {weights.file} belongs at "
            f"{path}"
        )
    return f"not downloaded yet; get it in a browser from {weights.address} and save it as {path}"


def check(weights: PublishedWeights, path: Path) -> None:
    """Check a file against the published checksum, where there is one.

    Raises:
        DownloadError: it is another file.
    """
    if weights.sha256 is not None and (found := sha256(path)) != weights.sha256:
        raise DownloadError(
            f"{path}: is not the published file (SHA-256 {found[:12]}..., published {weights.sha256[:12]}...); remove "
            "it and download it again"
        )


def download(weights: PublishedWeights, path: Path) -> None:
    """Download published weights from the Hugging Face hub to a path, and check them.

    The hub's own variables count: HF_ENDPOINT names a mirror, HF_HOME the cache, HF_HUB_OFFLINE forbids the network.

    Raises:
        DownloadError: they are not on the hub, the package huggingface_hub is missing, or the download fails; there is
            no file at the path then.
    """
    if weights.repository is None:
        raise DownloadError(f"{weights.name}: {how_to_get(weights, path)}")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise DownloadError(
            f"{weights.name}: downloading needs the package huggingface_hub: pip install huggingface_hub; or get "
            f"{weights.hub_file} in a browser from {weights.address} and save it as {path}"
        ) from error
    try:
        cached = Path(hf_hub_download(weights.repository, weights.hub_file))
    except Exception as error:  # of the hub's package, of either of its HTTP clients, or of the system
        reason = " ".join(str(error).split())[:300]
        raise DownloadError(f"{weights.name}: cannot be downloaded from {weights.address}: {reason}") from error
    blob = cached.resolve()
    try:
        check(weights, blob)
    except DownloadError:
        for file in (cached, blob):  # or the hub's package would take it for downloaded
            file.unlink(missing_ok=True)
        raise
    try:
        with replacing(path) as temporary:
            _link_or_copy(blob, temporary)
    except OSError as error:
        raise DownloadError(f"{path}: cannot be written ({error.strerror})") from error


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, which takes no space, or copy it to another file system."""
    target.unlink(missing_ok=True)  # of a killed process
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
