"""Which tests run when: the names that select them are those of tests."""

import re

from tests.conftest import LONGEST_FIRST, ROOT, SLOW_TESTS


def test_slow_tests_are_tests():
    for name in SLOW_TESTS:
        path, _, function = name.partition("::")
        assert re.search(rf"^def {function}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), name


def test_the_longest_files_are_there():
    assert all((ROOT / name).is_file() for name in LONGEST_FIRST)
