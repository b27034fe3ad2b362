"""Processes that take turns."""

import ctypes
import sys

import pytest

from focal_twins.errors import UserError
from focal_twins.measuring.turns import PROCESSORS, Worker, check_same_threads
from tests.conftest import PACKAGE

SERVER = f"""
import sys
sys.path.insert(0, {str(PACKAGE.parent)!r})
from focal_twins.measuring.turns import serve

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


# scikit-learn's OpenMP is GNU's, as PyTorch's is: it takes OMP_NUM_THREADS from the C library's environment.
OPENMP = f"""
import sys
sys.path.insert(0, {str(PACKAGE.parent)!r})
import sklearn.utils._openmp_helpers
from threadpoolctl import threadpool_info
from focal_twins.measuring.turns import serve

def threads():
    return next(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp")

serve(lambda: dict(threads=threads))
"""


def inherited_threads():
    """OMP_NUM_THREADS as the C library has it in this process, and a child inherits it unless told otherwise."""
    library = ctypes.CDLL(None)
    library.getenv.restype = ctypes.c_char_p
    return library.getenv(b"OMP_NUM_THREADS")


@pytest.fixture
def start():
    """Start workers whose OpenMP says how many threads it has: start(name, threads)."""
    workers = []

    def started(name, threads):
        workers.append(Worker(name, [sys.executable, "-c", OPENMP], threads))
        return workers[-1]

    yield started
    for process in workers:
        process.close()


def test_threads_are_those_asked_for_and_not_those_of_mindspore(start):
    """The conftest has imported MindSpore, which leaves OMP_NUM_THREADS=1 to every child of this process."""
    assert inherited_threads() == b"1"
    all_processors = sorted(PROCESSORS)
    for threads in range(1, len(all_processors) + 1):
        answer = start("a reference", threads).call("threads")
        assert (answer["result"], answer["processors"]) == (threads, all_processors[:threads])


@pytest.mark.skipif(len(PROCESSORS) < 2, reason="one processor")
def test_other_threads_are_not_compared(start):
    alike = {"own": start("own code", 2), "reference": start("the original", 2)}
    processors = sorted(PROCESSORS)[:2]
    assert check_same_threads(alike) == {name: {"threads": 2, "processors": processors} for name in alike}
    with pytest.raises(UserError, match=r"the original: 1 on processors \d+$"):
        check_same_threads({"own": start("own code", 2), "reference": start("the original", 1)})
