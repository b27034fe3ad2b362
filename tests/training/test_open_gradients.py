"""Gradients that an error interrupts do not spoil those of later steps."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from focal_twins.training.open_gradients import no_open_gradients


class Failing(nn.Cell):
    """The sum of one row of a weight, or the error it is told to raise."""

    def __init__(self, error):
        super().__init__()
        self.weight = Parameter(Tensor(np.ones((4, 3), np.float32)), name="weight")
        self.error = error

    def construct(self, factor):
        rows = self.weight * factor
        if self.error is not None:
            raise self.error
        return rows[2].sum()


@pytest.mark.parametrize("error", [ValueError("bad input"), KeyboardInterrupt()])
def test_a_step_works_after_one_that_failed(error):
    cell = Failing(error)
    gradient = ms.value_and_grad(cell, None, cell.trainable_params())
    with pytest.raises(type(error)), no_open_gradients():
        gradient(Tensor(2.0))
    cell.error = None
    assert gradient(Tensor(2.0))[0].asnumpy() == 6.0
