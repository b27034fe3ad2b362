"""Averages the weights exponentially over updates."""

from contextlib import contextmanager

import mindspore as ms
from mindspore import ParameterTuple, Tensor, nn, ops

from focal_twins.files.weights import EMA_PREFIX
from focal_twins.models.compiled import CompiledAverage, KernelLayer

approach = ops.MultitypeFuncGraph("approach")


@approach.register("Tensor", "Tensor", "Tensor")
def _approach(weight, average, parameter):
    return ops.assign(average, average + (parameter - average) * weight)


class ExponentialMovingAverage(nn.Cell, KernelLayer):
    """Keeps an average of the weights: average = decay * average + (1 - decay) * weight after every update.

    It starts at the initial weights. Only trained parameters are averaged. The averaged model has the newest buffers,
    which change in training without a gradient (BatchNorm's running mean and variance). The model itself holds these,
    so they are no part of this state, `applied` leaves them as they are, and a checkpoint's averaged weights come with
    its own buffers (files/weights.py). Frozen parameters and key tables do not change and are shared likewise.

    Args:
        warmup: limit the decay of update t (from 1) to (1 + t) / (10 + t), so that a short run's average is not mostly
            its random start.
    """

    def __init__(self, parameters, decay: float, warmup: bool = False):
        super().__init__(auto_prefix=False)
        self.weight = Tensor(1.0 - decay, ms.float32)
        self.warmup = warmup
        self.map = ops.HyperMap()
        self.parameters = ParameterTuple(parameters)
        self.averages = ParameterTuple([self._clone(parameter) for parameter in parameters])
        self.kernel = None

    def make_kernel(self, library):
        return CompiledAverage(library)

    @staticmethod
    def _clone(parameter):
        average = parameter.clone()
        average.name = EMA_PREFIX + parameter.name
        average.requires_grad = False
        return average

    def state(self):
        """Return all parameters that a checkpoint must hold."""
        return list(self.averages)

    def construct(self, step):
        """Add the current weights to the average. `step` is the float number of updates made, this one included."""
        weight = self.weight
        if self.warmup:
            weight = ops.maximum(weight, 1.0 - (1.0 + step) / (10.0 + step))
        if self.kernel is not None:
            return ops.depend(step, self.kernel(weight, self.averages, self.parameters))
        self.map(ops.partial(approach, weight), self.averages, self.parameters)
        return step

    @contextmanager
    def applied(self):
        """Give the model the averaged weights within the context, and its own again afterwards."""
        own = [Tensor(parameter.asnumpy()) for parameter in self.parameters]
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            parameter.set_data(Tensor(average.asnumpy()))
        try:
            yield
        finally:
            for parameter, value in zip(self.parameters, own, strict=True):
                parameter.set_data(value)
