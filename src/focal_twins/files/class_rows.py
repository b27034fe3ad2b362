"""Decides which rows of a checkpoint's head a model takes: each row belongs to a class, and classes have names.

A head for as many, but other, classes fits by its shape, and would be wrong without a word. The rule is the same for
every task: who loads weights to start from asks `choose_rows`, and load_weights applies the answer to the parameters
that the model calls its classifiers.
"""

from dataclasses import dataclass

import numpy as np

from focal_twins.errors import UserError
from focal_twins.files.names import some_names
from focal_twins.models.class_layout import ClassLayout

ONE_ROW_EACH = ClassLayout()


@dataclass(frozen=True)
class ClassRows:
    """Says where each class of the model has its row in a file.

    Attributes:
        rows: the row of each class, None for one that starts anew; None as a whole for the file's rows as they are.
        line: what the user should know about it, to be followed by the names of the parameters.
        required: true if a head that does not fit is an error, and not started anew.
    """

    rows: tuple[int | None, ...] | None = None
    line: str | None = None
    required: bool = False

    @property
    def all_new(self) -> bool:
        """True if no row of the file is taken."""
        return self.rows is not None and all(row is None for row in self.rows)

    def take(self, array: np.ndarray, initial: np.ndarray, layout: ClassLayout = ONE_ROW_EACH) -> np.ndarray | None:
        """Put together the parameter of a head, [rows, ...]; None if the file's array does not fit.

        Args:
            array: the file's, which has its classes.
            initial: the model's own, whose rows the classes without one in the file keep.
            layout: of both.
        """
        if array.shape[1:] != initial.shape[1:]:
            return None
        if self.rows is None:
            return array if array.shape == initial.shape else None
        taken = initial.copy()
        here, there = layout.split(taken), layout.split(array)
        found = [(row, source) for row, source in enumerate(self.rows) if source is not None]
        if here is None or there is None or len(self.rows) != here[0].shape[1]:
            return None
        if any(source >= there[0].shape[1] for _, source in found):
            return None
        for row, source in found:
            here[0][:, row] = there[0][:, source]
        here[1][:] = there[1]
        return taken


def choose_rows(choice: str, in_file: tuple[str, ...] | None, here: tuple[str, ...] | None) -> ClassRows:
    """Choose the rows of a head that is loaded to start from.

    Args:
        choice: train.pretrained_head. "auto": as they are where file and data have the same classes, or where one does
            not name them; by name where only the order differs; otherwise none. "keep": as they are, whatever the
            names. "new": none. "by_name": those of the classes that both have.
        in_file, here: names of the classes by label, None where they are not known.

    Raises:
        UserError: "by_name" without names.
    """
    if choice == "new":
        return ClassRows((None,) * len(here or ()), "initialised (the head, as train.pretrained_head=new asks)")
    if choice == "keep":
        return ClassRows(required=True)
    if in_file is None or here is None:
        nameless = "the data" if here is None else "the file"
        if choice == "by_name":
            raise UserError(f"train.pretrained_head=by_name: {nameless} does not name the classes; use keep or new")
        return ClassRows(
            line=f"taken as it is (the head; {nameless} does not name the classes, pretrained_head=new begins anew)"
        )
    if here == in_file:
        return ClassRows()
    places = {name: row for row, name in enumerate(in_file)}
    rows = tuple(places.get(name) for name in here)
    new = tuple(name for name, row in zip(here, rows, strict=True) if row is None)
    gone = tuple(name for name in in_file if name not in here)
    common = len(here) - len(new)
    if (choice == "auto" and set(here) != set(in_file)) or not common:
        others = [f"by_name takes the rows of the {common} in both"] if common else []
        others += ["keep takes all rows as they are"] if len(here) == len(in_file) else []
        remedy = f"; train.pretrained_head={' and '.join(others)}" if others else ""
        return ClassRows(
            (None,) * len(here),
            f"initialised (the head, for other classes: {_shown(gone)} only in the file, {_shown(new)} only here"
            f"{remedy})",
        )
    anew = f", initialised: {_shown(new)}" if new else ", in the order of the data's classes"
    return ClassRows(rows, f"taken by the names of {common} of {len(here)} classes (the head{anew})")


def _shown(names: tuple[str, ...]) -> str:
    """List the first names, and their number."""
    return f"{len(names)} ({some_names(names)})" if names else "none"
