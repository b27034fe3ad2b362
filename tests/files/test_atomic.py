"""Text files that are written part by part: they are whole or not there, and faults are one line."""

import errno
from types import SimpleNamespace

import pytest

from focal_twins.errors import UserError
from focal_twins.files.atomic import TextFile


def test_a_text_file_takes_its_name_when_it_is_closed(tmp_path):
    path = tmp_path / "below" / "list.txt"
    file = TextFile(path)
    file.write("one\n")
    file.write("a \N{EURO SIGN}\n")
    assert not path.exists()
    file.close()
    assert path.read_text(encoding="utf-8") == "one\na \N{EURO SIGN}\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_one_line_and_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("earlier")
    file = TextFile(path)

    def write(text):
        raise OSError(errno.ENOSPC, "No space left on device")

    file.stream = SimpleNamespace(write=write)
    for _ in range(2):
        with pytest.raises(UserError, match=r"list.txt: cannot be written \(No space left on device\)$"):
            file.write("more")
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "below").write_text("no folder")
    with pytest.raises(UserError, match=r"list.txt: cannot be written \(File exists\)$"):
        TextFile(tmp_path / "below" / "list.txt")
