"""What is listed as an image and what is not, and files that cannot be read."""

import os
import socket

import numpy as np
import pytest
from PIL import Image

from focal_twins.data.dataset import DataError
from focal_twins.data.image_files import EXTENSIONS, LeftOut, list_images, read_file, reason_of
from focal_twins.data.image_folder import ImageFolder
from focal_twins.data.text_files import read_lines


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_pillow_reads_every_ending():
    Image.init()
    readable = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
    assert set(EXTENSIONS) - readable <= {".avif"}  # Pillow before 11.3


def test_images_are_found_in_any_case_and_below(tmp_path):
    make(tmp_path, "b.JpG", "a.jfif", "sub/c.PNg", "sub/deep/d.webp", "sub.png", "notes.txt", "x.pdf", "Photo.HEIC")
    left_out = LeftOut()
    assert list_images(tmp_path, left_out) == ["a.jfif", "b.JpG", "sub.png", "sub/c.PNg", "sub/deep/d.webp"]
    assert str(left_out) == "3 without the ending of an image (Photo.HEIC, notes.txt, x.pdf)"


def test_what_systems_leave_behind_is_no_image(tmp_path):
    make(tmp_path, "a.png", "._a.png", ".DS_Store", "Thumbs.db", "__MACOSX/._a.png", "@eaDir/a.png/THUMB_XL.jpg")
    left_out = LeftOut()
    assert list_images(tmp_path, left_out) == ["a.png"]
    assert str(left_out) == "5 hidden or of the system (.DS_Store, ._a.png, @eaDir, ...)"


def test_links_that_go_round_or_nowhere_are_told(tmp_path):
    make(tmp_path, "a/1.png", "b/2.png", "elsewhere/3.png")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "b" / "gone").symlink_to("nowhere")
    (tmp_path / "b" / "more").symlink_to("../elsewhere")  # is followed
    (tmp_path / "b" / "folder.png").mkdir()
    left_out = LeftOut()
    assert list_images(tmp_path, left_out) == ["a/1.png", "b/2.png", "b/more/3.png", "elsewhere/3.png"]
    assert left_out.examples == {
        "linking to a folder above": ["a/up"],
        "linking nowhere": ["b/gone"],
        "named like an image, but a folder without any": ["b/folder.png/"],
    }


def test_a_folder_says_what_it_leaves_out(tmp_path):
    make(tmp_path, "cat/1.png", "cat/readme.txt", "dog/sub/2.png", "loose.png", "__MACOSX/cat/._1.png", "Cat/3.png")
    folder = ImageFolder.open(tmp_path)
    assert folder.names == ["Cat/3.png", "cat/1.png", "dog/sub/2.png"]
    assert folder.content(2).tobytes() == b"dog/sub/2.png"
    assert folder.notices == (
        f"data folder {tmp_path}: left out 1 beside the class folders (loose.png); 1 hidden or of the system "
        "(__MACOSX); 1 without the ending of an image (cat/readme.txt)",
        f"data folder {tmp_path}: the classes 'Cat' and 'cat' differ only in case or Unicode form",
    )


def test_a_flat_folder_is_not_called_empty(tmp_path):
    make(tmp_path, "1.png", "2.png")
    with pytest.raises(DataError, match="holds 2 images, but no class folders; expected one folder"):
        ImageFolder.open(tmp_path)
    make(tmp_path, "cat/1.heic")
    with pytest.raises(DataError, match=r"cat: holds no images \(.jpg, .*; it holds 1 without the ending"):
        ImageFolder.open(tmp_path)


def test_only_regular_files_are_read(tmp_path):
    """Opening a pipe must not wait for one who writes, and a device has no end."""
    make(tmp_path, "file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "failing").symlink_to("/proc/self/mem")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(tmp_path / "socket"))
    reasons = {
        "pipe": "not a regular file", "socket": "No such device or address", "/dev/zero": "not a regular file",
        ".": "a folder, not a file", "loop": "Too many levels of symbolic links", "none": "No such file or directory",
        "dangling": "No such file or directory", "failing": "Input/output error",
        "large": "1099511627776 bytes are too many for an image",
    }  # fmt: skip
    before = os.listdir("/proc/self/fd")
    for name, reason in reasons.items():
        with pytest.raises(OSError) as error:
            read_file(tmp_path / name)
        assert reason_of(error.value) == reason
    assert len(os.listdir("/proc/self/fd")) == len(before)
    content = read_file(tmp_path / "file")
    assert (content.dtype, content.tobytes()) == (np.uint8, b"file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission_are_refused(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "cat" / "1.png").chmod(0)
    with pytest.raises(OSError) as error:
        read_file(tmp_path / "cat" / "1.png")
    assert reason_of(error.value) == "Permission denied"
    (tmp_path / "dog").chmod(0)
    with pytest.raises(DataError, match=r"dog: cannot be listed \(Permission denied\)"):
        ImageFolder.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("\ufeffcaf\u00e9 1\r\ndog 2\r\n".encode(), ["caf\u00e9 1", "dog 2"]),
        (b"cat 1\rdog 2", ["cat 1", "dog 2"]),
        ("a\u2028b 1\n".encode(), ["a\u2028b 1"]),
        (b"", []),
    ],
)
def test_lines_are_read_whoever_wrote_them(tmp_path, content, lines):
    (tmp_path / "map.txt").write_bytes(content)
    assert read_lines(tmp_path / "map.txt", "map") == lines


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("dog 1\ncaf\u00e9 2\n".encode("latin-1"), r"map: line 2 is not UTF-8; convert it: iconv -f ENCODING -t UTF-8"),
        ("dog 1\n".encode("utf-16"), "map: is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 map.txt > NEW"),
        (b"\x89PNG\x00", "map: line 1 is not UTF-8"),
        (b"PK\x00\x01", "map: not a text file"),
    ],
)
def test_other_encodings_are_one_line_with_the_remedy(tmp_path, content, expected):
    (tmp_path / "map.txt").write_bytes(content)
    with pytest.raises(DataError, match=expected) as error:
        read_lines(tmp_path / "map.txt", "map")
    assert "\n" not in str(error.value)
