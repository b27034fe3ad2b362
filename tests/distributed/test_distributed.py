"""What ranks tell each other, by a stand-in for the collective that adds in float32 as the real one does."""

import numpy as np
import pytest

from focal_twins.distributed.ranks import Dist


class Ranks(Dist):
    """One of several ranks that all hold the values given."""

    def __init__(self, values):
        super().__init__(rank=0, size=len(values))
        object.__setattr__(self, "values", values)

    def sum(self, own):
        def digits(value):
            parts = np.array([[value >> shift & 15 for shift in range(0, 48, 4)]])
            return np.stack([parts, parts**2])

        assert np.array_equal(own, digits(self.values[0]))
        return np.sum([digits(value) for value in self.values], axis=0, dtype=np.float32)


def test_one_rank_gathers_its_own():
    (array,) = Dist().gather(np.arange(3))
    np.testing.assert_array_equal(array, np.arange(3))


@pytest.mark.parametrize("value", [0, 1, 5003, 70001, 400001, 2**47 + 12345])
def test_equal_values_agree_whatever_their_size(value):
    assert Ranks([value] * 512).agree([value]).all()


@pytest.mark.parametrize("others", [[5004], [5003, 5003, 5004], [5002, 5004, 5003]])
def test_different_values_do_not_agree(others):
    assert not Ranks([5003, *others]).agree([5003]).any()
