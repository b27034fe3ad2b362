"""Several processes: what each of them has checked (rank_checks.py)."""

from functools import cache

import pytest

from tests.conftest import ROOT
from tests.distributed.rank_checks import CHECKS
from tests.processes import mpirun, run


@cache
def output_of(ranks):
    """One launch for all checks; the output, and errors where it failed."""
    done = run(mpirun(ranks, ROOT / "tests" / "distributed" / "rank_checks.py"))
    return done.stdout + (done.stderr if done.returncode else "")


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.exhaustive), 3])
@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_ranks_have_it_in_common(check, ranks):
    output = output_of(ranks)
    for rank in range(ranks):
        assert f"rank {rank} of {ranks}: {check}\n" in output, output[-3000:]
