"""One training step as one graph."""

from typing import Any

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.ops.operations.math_ops import NPUClearFloatStatusV2, NPUGetFloatStatusV2  # mindspore.ops has neither

from src.files.weights import STATE_PREFIX

# What is done to every gradient goes through HyperMap: loops over hundreds of parameters exceed the compiler's depth.
multiply = ops.MultitypeFuncGraph("multiply")
add_part = ops.MultitypeFuncGraph("add_part")
clear = ops.MultitypeFuncGraph("clear")
square_sum = ops.MultitypeFuncGraph("square_sum")
reduce_sum = ops.ReduceSum()  # there are two for every parameter, and Tensor.sum takes longer to compile


@multiply.register("Tensor", "Tensor")
def _multiply(factor, gradient):
    return gradient * factor


@add_part.register("Number", "Tensor", "Tensor")
def _add_part(parts, total, gradient):
    return ops.assign_add(total, gradient / parts)


@clear.register("Tensor")
def _clear(total):
    return ops.assign(total, ops.zeros_like(total))


@square_sum.register("Tensor")
def _square_sum(gradient):
    # Over the first axis first: a sum over all of them at once takes five times as long on CPU.
    squares = reduce_sum(ops.square(gradient.astype(ms.float32)), 0)
    return reduce_sum(squares) if squares.ndim else squares


class LossScale(nn.Cell):
    """Dynamic loss scale: halved at an overflow, doubled after `growth_interval` updates without one.

    A fixed scale keeps its value; overflowing steps are skipped all the same.
    """

    def __init__(self, init_scale: float, dynamic: bool, growth_interval: int):
        super().__init__(auto_prefix=False)
        self.dynamic = dynamic
        self.growth_interval = growth_interval
        self.value = Parameter(Tensor(init_scale, ms.float32), name=STATE_PREFIX + "loss_scale", requires_grad=False)
        self.good_steps = Parameter(Tensor(0, ms.int32), name=STATE_PREFIX + "good_steps", requires_grad=False)

    def state(self):
        """Everything that a checkpoint must hold."""
        return [self.value, self.good_steps]

    def construct(self, finite):
        """Take in whether a step was finite (bool scalar tensor); returns the scale for the next one."""
        if self.dynamic:
            good_steps = ops.select(finite, self.good_steps + 1, ops.zeros_like(self.good_steps))
            grows = good_steps >= self.growth_interval
            scale = ops.select(finite, self.value, ops.maximum(self.value / 2, Tensor(1.0, ms.float32)))
            ops.assign(self.value, ops.select(grows, scale * 2, scale))
            ops.assign(self.good_steps, ops.select(grows, ops.zeros_like(good_steps), good_steps))
        return self.value


class LossCell(nn.Cell):
    """Scaled loss of a batch, with the loss itself beside it."""

    def __init__(self, network, criterion):
        super().__init__(auto_prefix=False)
        self.network = network
        self.criterion = criterion

    def construct(self, images, targets, scale, drop_path, dropout_seed):
        loss = self.criterion(self.network(images, drop_path, dropout_seed), targets)
        return loss * scale, loss


class TrainStep(nn.Cell):
    """Forward, backward and update on one batch.

    In order: gradients of the scaled loss; the overflow flag; all-reduce of both, with the loss and the votes to stop
    beside the flag; unscale and clip by global norm; optimizer; EMA. After an overflow nothing changes but the loss
    scale. Unscaling waits until it can share a pass over the gradients with clipping: both multiply by a scalar, which
    commutes with the reduction.

    Args:
        network: images, drop-path scales and dropout seed to logits; `parameters` are the weights it trains.
        criterion: logits and targets to a scalar loss.
        clip_norm: limit of the global gradient norm, or None.
        accumulation_steps: batches whose mean gradient makes one update; see `construct`.
        reducer: averages a tuple of gradients over the devices, or None on one device.
        ranks: the number of devices.
        float_status: read the Ascend 910's overflow register, for its arithmetic saturates instead of giving inf.
    """

    def __init__(
        self,
        network,
        criterion,
        parameters,
        optimizer,
        loss_scale,
        ema=None,
        clip_norm=None,
        accumulation_steps=1,
        reducer=None,
        ranks=1,
        float_status=False,
    ):
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.gradients = ops.value_and_grad(LossCell(network, criterion), None, self.parameters, has_aux=True)
        self.optimizer = optimizer
        self.loss_scale = loss_scale
        self.ema = ema
        self.clip_norm = clip_norm
        self.map = ops.HyperMap()
        self.reducer = reducer
        self.ranks = ranks
        self.all_reduce: Any = ops.AllReduce() if reducer is not None else None
        self.accumulation_steps = accumulation_steps
        if accumulation_steps > 1:
            self.gradient_sum = self.parameters.clone("gradient_sum", init="zeros")
            self.loss_sum = Parameter(Tensor(0.0, ms.float32), name="loss_sum", requires_grad=False)
            self.overflow_sum = Parameter(Tensor(0.0, ms.float32), name="overflow_sum", requires_grad=False)
        self.float_status = float_status
        if float_status:
            self.get_status = NPUGetFloatStatusV2()
            self.clear_status = NPUClearFloatStatusV2()

    def construct(self, images, targets, learning_rate, drop_path=None, dropout_seed=None, update=True, stop_vote=0.0):
        """One batch of images [B, C, H, W] and soft targets [B, classes].

        With accumulation, pass `update=False` for all batches of an update but the last.

        Args:
            stop_vote: float32 scalar, 1 where this process has been asked to stop.

        Returns:
            The update's outcome, the same on all devices, float32 [5]: loss (mean over accumulated batches and
            devices), global gradient norm before clipping, 1 if the step was finite (otherwise it was skipped), the
            sum of the votes to stop, and the loss scale that it was made with. Before the last batch of an update,
            loss and overflow are this batch's and nothing else is told.
        """
        scale = self.loss_scale.value + 0.0  # the value, not the parameter, which changes below
        if self.float_status:
            images = ops.depend(images, self.clear_status(Tensor([0] * 8, ms.int32)))
        (_, loss), gradients = self.gradients(images, targets, scale, drop_path, dropout_seed)
        overflows = self.count_overflows(loss, gradients)

        if self.accumulation_steps > 1:
            self.map(ops.partial(add_part, self.accumulation_steps), self.gradient_sum, gradients)
            ops.assign_add(self.loss_sum, loss / self.accumulation_steps)
            ops.assign_add(self.overflow_sum, overflows)
            if not update:
                return ops.stack((loss, loss, 1.0 - overflows, ops.zeros_like(loss), scale))
            gradients = self.gradient_sum
            loss = self.loss_sum + 0.0  # the value, not the parameter that is reset below
            overflows = self.overflow_sum + 0.0

        votes = ops.zeros_like(loss) + stop_vote
        if self.reducer is not None:
            gradients = self.reducer(gradients)
            sums = self.all_reduce(ops.stack((overflows, loss / self.ranks, votes)))
            overflows, loss, votes = sums[0], sums[1], sums[2]
        norm = self.global_norm(gradients) / scale
        finite = ops.logical_and(ops.equal(overflows, 0), ops.isfinite(norm))
        # One pass over the gradients both unscales and clips them.
        factor = 1.0 / scale
        if self.clip_norm is not None:
            factor = factor * ops.minimum(self.clip_norm / (norm + 1e-6), Tensor(1.0, ms.float32))
        if finite:
            norm = ops.depend(norm, self.apply(gradients, factor, learning_rate))
        norm = ops.depend(norm, self.loss_scale(finite))
        if self.accumulation_steps > 1:
            self.map(clear, self.gradient_sum)
            ops.assign(self.loss_sum, ops.zeros_like(self.loss_sum))
            ops.assign(self.overflow_sum, ops.zeros_like(self.overflow_sum))
        return ops.stack((loss, norm, finite.astype(ms.float32), votes, scale))

    def count_overflows(self, loss, gradients):
        """1.0 if this device's backward pass overflowed, else 0.0.

        Looked at before the reduction, for a saturated gradient carries no inf through it. On one device without a
        status register, the norm of the gradients tells, and is computed anyway.
        """
        finite = ops.isfinite(loss)
        if self.float_status:
            status = ops.depend(Tensor([0] * 8, ms.int32), gradients)
            finite = ops.logical_and(finite, ops.equal(self.get_status(status), 0).all())
        if self.reducer is not None:
            finite = ops.logical_and(finite, ops.isfinite(self.global_norm(gradients)))
        return 1.0 - finite.astype(ms.float32)

    def apply(self, gradients, factor, learning_rate):
        """Optimizer, then EMA."""
        step = self.optimizer(self.map(ops.partial(multiply, factor), gradients), learning_rate)
        if self.ema is not None:
            self.ema(step)
        return step

    def global_norm(self, gradients):
        """L2 norm of all values of a tuple of tensors together, a float32 scalar."""
        return ops.sqrt(ops.addn(self.map(square_sum, gradients)))
