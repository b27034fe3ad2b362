"""Prepares the folder of a run when it begins or resumes, and writes the files beside the checkpoints."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from focal_twins.config.load import Config
from focal_twins.data.dataset import Dataset
from focal_twins.data.pipeline import UnreadableImages
from focal_twins.distributed.ranks import Dist
from focal_twins.errors import UserError
from focal_twins.files.atomic import remove_unfinished, write_text
from focal_twins.files.folder_lock import FolderLock
from focal_twins.files.names import escape_name
from focal_twins.files.weights import read_checkpoint
from focal_twins.phrases import counted
from focal_twins.tasks.evaluation_file import write_evaluation
from focal_twins.training.checkpoint import CheckpointFolder, Progress
from focal_twins.training.metrics_log import GrowingFile, MetricsLog
from focal_twins.training.saving import warn


@contextmanager
def held(folder: Path, dist: Dist) -> Iterator[None]:
    """Keep a run's folder for this training while the context is open; all ranks open it together.

    Scripts that read the folder, or add a file of their own to it, need not hold it.

    Raises:
        UserError: on every rank: another training has the folder, or it cannot be written.
    """
    with ExitStack() as stack:
        lock = FolderLock(folder, warn)
        dist.on_main(lambda: stack.enter_context(lock), f"output folder {folder}: see the main process's line")
        yield


class RunFolder:
    """Keeps the files of a run in runs/<name>; only the main rank writes.

    They are checkpoints, config.yaml, sessions.jsonl, metrics.jsonl and its TensorBoard events, evaluation.json,
    summary.json, and the unreadable images of each rank.
    """

    def __init__(self, path: Path, keep_checkpoints: int, is_main: bool):
        self.path = path
        self.checkpoints = CheckpointFolder(path / "checkpoints", keep_checkpoints)
        self.metrics = MetricsLog(path / "metrics.jsonl", is_main)
        self.sessions = GrowingFile(path / "sessions.jsonl")
        # The best epoch's, until it is written: what keep_evaluation takes.
        self.evaluation: tuple | None = None
        self.announced: set[str] = set()

    def save_to_resume(self, resume: bool | str, announce: Callable[[str], None]) -> tuple[Path | None, dict | None]:
        """Return the checkpoint to resume from and its content; (None, None) to begin a run.

        Args:
            resume: train.resume of the configuration.
            announce: gets a line for each save that cannot be read, or where there is none.

        Raises:
            UserError: the folder holds a run that was not asked for, or no save can be read.
        """
        saves, last = self.checkpoints.saves(), self.checkpoints.last
        path = Path(resume) if isinstance(resume, str) and resume != "auto" else None
        if path is not None and (not saves or (path.exists() and last.exists() and path.samefile(last))):
            return path, read_checkpoint(path)
        if saves and (path is not None or not resume):
            raise UserError(
                f"{self.path} holds a run; train.resume=auto goes on with it, runtime.output=FOLDER starts another"
            )
        if saves:
            return self.checkpoints.newest(announce)
        if resume:
            announce(f"nothing to resume in {self.path}: a new run begins there")
        return None, None

    def make(self) -> None:
        """Make the folder.

        Raises:
            UserError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output folder {self.path}: cannot be written ({error.strerror})") from error

    def prepare(self, resume_from: Path | None, progress: Progress) -> None:
        """Remove unfinished files of a killed run, and records of work that training after `progress` does again.

        Raises:
            UserError: no room or no permission.
        """
        try:
            for folder in (self.path, self.checkpoints.path):
                remove_unfinished(folder)
            if resume_from is None:
                self.sessions.path.unlink(missing_ok=True)
                for earlier in self.path.glob("unreadable_images_*.txt"):
                    earlier.unlink()
        except OSError as error:
            raise UserError(f"output folder {self.path}: cannot be written ({error.strerror})") from error
        self.metrics.keep_until(progress.epoch, progress.update)
        if resume_from is not None and resume_from.parent == self.checkpoints.path:
            self.checkpoints.adopt(resume_from, progress)

    def write_validation(self, data: Dataset) -> None:
        """Write the names of the validation images where they are a share of the training set's, one a line.

        Raises:
            UserError: no room or no permission.
        """
        path = self.path / "validation_images.txt"
        if data.is_held_back:
            write_text(path, "".join(f"{escape_name(name)}\n" for name in data.names))
        else:
            path.unlink(missing_ok=True)  # of a run that goes on with another validation set

    def write_config(self, config: Config) -> None:
        """Write config.yaml, every key with its value.

        Raises:
            UserError: no room or no permission.
        """
        write_text(self.path / "config.yaml", config.to_yaml())

    def note_session(self, session: dict) -> None:
        """Add a line to sessions.jsonl about a process that begins or goes on with the run."""
        self.sessions.add(json.dumps(session).encode() + b"\n")

    def keep_evaluation(
        self,
        content: dict,
        arrays: dict[str, np.ndarray],
        pictures: dict[str, bytes] | None = None,
        files: dict[str, bytes] | None = None,
    ) -> None:
        """Keep an evaluation until `write_pending` writes it to evaluation.json and the files beside it."""
        self.evaluation = content, arrays, pictures, files

    def write_pending(self) -> bool:
        """Write everything that is still pending, new or failed before; return whether nothing is left."""
        written = [self.sessions.flush(), self.metrics.flush()]
        try:
            if self.evaluation is not None:
                write_evaluation(self.path / "evaluation.json", *self.evaluation)
                self.evaluation = None
        except UserError as error:
            warn(f"{error}; it is kept and tried again")
        return all(written) and self.evaluation is None

    def unreadable(self, rank: int) -> UnreadableImages:
        """Return the record of unreadable images that a rank's workers write to."""
        return UnreadableImages(self.path / f"unreadable_images_{rank}.txt")

    def unreadable_images(self) -> dict[str, str]:
        """Return the reason of each image that was unreadable since the run began, on any rank."""
        found: dict[str, str] = {}
        for path in sorted(self.path.glob("unreadable_images_*.txt")):
            found |= UnreadableImages(path).read()
        return found

    def name_unreadable(self, announce: Callable[[str], None]) -> None:
        """Announce images that were found unreadable since the last call."""
        found = self.unreadable_images()
        new = [image for image in found if image not in self.announced]
        for image in new:
            announce(
                f"unreadable image {escape_name(image)} ({found[image]}): replaced by another in training, not counted "
                "in evaluation"
            )
        self.announced.update(new)
        if new:
            announce(f"{counted(len(self.announced), 'unreadable image')} so far")

    def summary(self) -> dict | None:
        """Read the summary of a run that came to its end; None if there is none."""
        path = self.path / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def finish(self, summary: dict) -> None:
        """Write the summary, and everything that could not be written before.

        Raises:
            UserError: no room or no permission.
        """
        write_text(self.path / "summary.json", json.dumps(summary, indent=2))
        if not self.write_pending():
            raise UserError(f"{self.path}: metrics.jsonl, sessions.jsonl or evaluation.json could not be completed")
