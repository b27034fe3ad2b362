"""Names of files in lines of text: every name comes back, and is found however people write it."""

import os

import pytest

from focal_twins.files.names import NameIndex, escape_name, only_in, some_names, unescape_name

NAMES = [
    b"cat/007.png", "caf\u00e9 \u65e5\u672c.jpg".encode(), b"caf\xe9.jpg", b"a\tb\nc\rd.png", b"a\\tb\\xe9\\\\.png",
    "a\u2028b\u0085c\u202ed.png".encode(), b"\x01\x7f\x1b[31m.png", bytes(range(1, 256)), b"\\", b" ",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_name_survives_as_one_field_of_one_line(name):
    name = os.fsdecode(name)
    text = escape_name(name)
    assert len(text.splitlines()) == 1
    assert "\t" not in text
    assert text.encode("utf-8").decode("utf-8") == text
    assert unescape_name(text) == name


def test_plain_names_stay_as_they_are():
    assert escape_name("cat/caf\u00e9 1.png") == "cat/caf\u00e9 1.png"
    assert escape_name(os.fsdecode(b"caf\xe9\t1\\2.png")) == "caf\\xe9\\t1\\\\2.png"


def test_names_are_found_as_people_write_them():
    known = ["cat/1.png", "cafe\u0301/2.png", "dog\\3.png", os.fsdecode(b"caf\xe9/4.png"), "a\tb.png", "x", "./x"]
    index = NameIndex(known)
    for text, name in [
        ("cat/1.png", known[0]), ("./cat/1.png", known[0]), ("/cat/1.png", known[0]), ("cat\\1.png", known[0]),
        ("caf\u00e9/2.png", known[1]), ("dog/3.png", known[2]), ("caf\\xe9/4.png", known[3]), ("a\\tb.png", known[4]),
        ("x", "x"),
    ]:  # fmt: skip
        assert index.find(text) == name
    assert index.find("cat/2.png") is None
    assert index.find("/x") is None  # two are meant by it


def test_what_two_lists_of_names_do_not_share_is_said_of_both():
    assert only_in(["a", "b"], ["b", "c", "d\n"], "data", "model") == "only in data: a; only in model: c, d\\n"
    assert only_in(["a", "b"], ["b"], "data", "model") == "only in data: a"
    assert only_in("abc", "acb", "data", "model") == "in another order: the class 1 is b in data, c in model"
    assert some_names("abcd") == "a, b, c, ..."
