"""Processes that take turns."""

import sys

import pytest

from src.errors import UserError
from src.turns import Worker
from tests.conftest import ROOT

SERVER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from src.turns import serve

def prepare():
    print("what others print is no answer")
    state = []
    return {{
        "count": lambda: state.append(0) or len(state),
        "sleep": lambda: __import__("time").sleep(0.2),
        "grow": lambda: len(bytearray(b"x" * 200_000_000)),
        "fail": lambda: [][1],
    }}

serve(prepare)
"""


@pytest.fixture
def worker():
    process = Worker("the counter", [sys.executable, "-c", SERVER])
    yield process
    process.close()


def test_each_call_is_one_turn(worker):
    assert [worker.call("count")["result"] for _ in range(3)] == [1, 2, 3]
    slept = worker.call("sleep")
    assert slept["seconds"] >= 0.2 > slept["cpu_seconds"]


def test_memory_is_the_process_own(worker):
    before = worker.call("count")
    after = worker.call("grow")
    assert after["peak"] - before["peak"] > 190e6
    assert after["resident"] < after["peak"]


def test_an_end_says_why(worker):
    with pytest.raises(UserError, match=r"^the counter: IndexError: list index out of range$"):
        worker.call("fail")
