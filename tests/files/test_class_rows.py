"""Which rows of a head are taken from a file: decided by the names of the classes, for every task alike."""

import numpy as np
import pytest

from focal_twins.errors import UserError
from focal_twins.files.class_rows import choose_rows
from focal_twins.models.class_layout import ClassLayout

ABC, CBA, ABD, BX = ("a", "b", "c"), ("c", "b", "a"), ("a", "b", "d"), ("b", "x")
FILE = np.arange(6, dtype=np.float32).reshape(3, 2)
OWN = -np.ones((3, 2), np.float32)


@pytest.mark.parametrize(
    ("choice", "in_file", "here", "rows", "said"),
    [
        ("auto", ABC, ABC, [0, 1, 2], None),
        ("auto", ABC, CBA, [2, 1, 0], "taken by the names of 3 of 3 classes"),
        ("auto", ABC, ABD, [None] * 3, "other classes: 1 (c) only in the file, 1 (d) only here"),
        ("auto", ABC, ("d", "e", "f"), [None] * 3, "train.pretrained_head=keep takes all rows as they are"),
        ("auto", None, ABC, [0, 1, 2], "the file does not name the classes"),
        ("auto", ABC, None, [0, 1, 2], "the data does not name the classes"),
        ("keep", ABC, ABD, [0, 1, 2], None),
        ("new", ABC, ABC, [None] * 3, "as train.pretrained_head=new asks"),
        ("new", None, ABC, [None] * 3, "as train.pretrained_head=new asks"),
        ("by_name", ABC, ABD, [0, 1, None], "2 of 3 classes (the head, initialised: 1 (d))"),
        ("by_name", BX, ABC, [None, 0, None], "1 of 3 classes"),
        ("by_name", ABC, ("d", "e", "f"), [None] * 3, "other classes"),
    ],
)
def test_rows_follow_the_names_of_the_classes(choice, in_file, here, rows, said):
    chosen = choose_rows(choice, in_file, here)
    assert (chosen.line is None) if said is None else (said in str(chosen.line))
    taken = chosen.take(FILE[: len(in_file or ABC)], OWN)
    expected = [OWN[0] if row is None else FILE[row] for row in rows]
    np.testing.assert_array_equal(taken, expected)
    assert chosen.all_new == (set(rows) == {None})
    np.testing.assert_array_equal(OWN, -1)  # the model's own values are not written to


def test_a_choice_that_cannot_be_made_is_refused():
    for in_file, here, named in ((None, ABC, "the file"), (ABC, None, "the data")):
        with pytest.raises(UserError, match=f"by_name: {named} does not name the classes"):
            choose_rows("by_name", in_file, here)


def test_heads_of_other_shapes_do_not_fit():
    for choice, in_file in (("keep", ABC), ("auto", None), ("by_name", ABC)):
        chosen = choose_rows(choice, in_file, ABD)
        assert chosen.take(FILE[:, :1], OWN) is None  # another width
        assert chosen.take(FILE[:1], OWN) is None  # fewer rows than the file has names


@pytest.mark.parametrize(
    ("layout", "in_file", "own", "taken"),
    [
        (ClassLayout(blocks=2), [0, 1, 2, 10, 11, 12], [-1] * 4, [1, -1, 11, -1]),  # anchors of a place
        (ClassLayout(per_class=2), [0, 1, 10, 11, 20, 21], [-1] * 4, [10, 11, -1, -1]),  # boxes of classes
        (ClassLayout(others=1), [0, 1, 2, 9], [-1] * 3, [1, -1, 9]),  # with a background
        (ClassLayout(blocks=2), [0, 1, 2, 10, 11, 12], [-1] * 3, None),
        (ClassLayout(per_class=2), [0, 1, 10], [-1] * 4, None),
    ],
)
def test_rows_of_other_layouts(layout, in_file, own, taken):
    """The file has classes a, b and c; the model b and d."""
    found = choose_rows("by_name", ABC, ("b", "d")).take(np.array(in_file), np.array(own), layout)
    assert (found is None) if taken is None else found.tolist() == taken
