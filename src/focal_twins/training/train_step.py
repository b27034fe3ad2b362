"""Runs one training step as one graph."""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.ops.operations.math_ops import NPUClearFloatStatusV2, NPUGetFloatStatusV2  # mindspore.ops has neither

from focal_twins.files.weights import STATE_PREFIX
from focal_twins.models.batch_norm import batch_norms, running_statistics_kept
from focal_twins.models.compiled import CompiledSquares, KernelLayer
from focal_twins.models.device_options import device_options, set_device_options

# Operations on every gradient go through HyperMap: loops over hundreds of parameters exceed the compiler's depth.
add_part = ops.MultitypeFuncGraph("add_part")
clear = ops.MultitypeFuncGraph("clear")
square_sum = ops.MultitypeFuncGraph("square_sum")
reduce_sum = ops.ReduceSum()  # there are two for every parameter, and Tensor.sum takes longer to compile


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


def _zeros(name, shape):
    """Create a parameter of zeros that sums over the batches of an update."""
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name, requires_grad=False)


def outcome(loss, norm, finite, votes, scale, parts):
    """Join scalars and parts [K] into the vector [5 + K] that a step returns."""
    return ops.concat((ops.stack((loss, norm, finite, votes, scale)), parts))


class GlobalNorm(nn.Cell, KernelLayer):
    """Computes the L2 norm of all values of a tuple of tensors together, a float32 scalar."""

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.map = ops.HyperMap()
        self.kernel = None

    def make_kernel(self, library):
        return CompiledSquares(library)

    def construct(self, tensors):
        if self.kernel is not None:
            return ops.sqrt(self.kernel(tensors))
        return ops.sqrt(ops.addn(self.map(square_sum, tensors)))


class LossScale(nn.Cell):
    """Keeps the loss scale: halves it at an overflow, doubles it after `growth_interval` updates without one.

    A fixed scale keeps its value; overflowing steps are skipped all the same.
    """

    def __init__(self, init_scale: float, dynamic: bool, growth_interval: int):
        super().__init__(auto_prefix=False)
        self.dynamic = dynamic
        self.growth_interval = growth_interval
        self.value = Parameter(Tensor(init_scale, ms.float32), name=STATE_PREFIX + "loss_scale", requires_grad=False)
        self.good_steps = Parameter(Tensor(0, ms.int32), name=STATE_PREFIX + "good_steps", requires_grad=False)

    def state(self):
        """Return all parameters that a checkpoint must hold."""
        return [self.value, self.good_steps]

    def construct(self, finite):
        """Adjust the scale by whether a step was finite (bool scalar tensor); return the scale for the next one."""
        if self.dynamic:
            good_steps = ops.select(finite, self.good_steps + 1, ops.zeros_like(self.good_steps))
            grows = good_steps >= self.growth_interval
            scale = ops.select(finite, self.value, ops.maximum(self.value / 2, Tensor(1.0, ms.float32)))
            ops.assign(self.value, ops.select(grows, scale * 2, scale))
            ops.assign(self.good_steps, ops.select(grows, ops.zeros_like(good_steps), good_steps))
        return self.value


class SumOverRanks(nn.Cell):
    """Adds up a tensor over the ranks, without a gradient.

    Args:
        all_reduce: the collective, or None on one rank.
    """

    def __init__(self, all_reduce):
        super().__init__(auto_prefix=False)
        self.all_reduce = all_reduce

    def construct(self, x):
        x = ops.stop_gradient(x)
        if self.all_reduce is not None:
            x = ops.stop_gradient(self.all_reduce(x))
        return x


class ScaledLoss(nn.Cell):
    """Computes the loss of a batch times the loss scale, and the parts [K] whose sum the loss is.

    Parts with weights are multiplied by (batches of the update) / (weights of the whole update), so that the mean over
    those batches is the quotient of the totals: from there on they are averaged as parts without weights are.

    Args:
        losses: see Losses.
        batches: forward passes of an update, on all ranks together.
        sum_over_ranks: see SumOverRanks.
    """

    def __init__(self, losses, batches, sum_over_ranks):
        super().__init__(auto_prefix=False)
        self.losses = losses
        self.batches = batches
        self.sum_over_ranks = sum_over_ranks
        self.weighted = losses.weight_floors is not None
        if self.weighted:
            self.floors = Tensor(losses.weight_floors, ms.float32)

    def construct(self, scale, total_weights, *inputs):
        """Return loss and parts; `total_weights`: [K] over the whole update where they have been counted, else None."""
        parts, weights = self.losses(*inputs)
        if (weights is None) == self.weighted:
            raise ValueError("a loss returns weights where it states weight_floors, and None elsewhere")
        if self.weighted:
            if total_weights is None:
                total_weights = self.sum_over_ranks(weights)
            parts = parts * (self.batches / ops.maximum(total_weights, self.floors))
        return reduce_sum(parts) * scale, parts


class WeightCount(nn.Cell):
    """Adds the weights of a batch to a sum and returns the weights."""

    def __init__(self, losses, weight_sum):
        super().__init__(auto_prefix=False)
        self.losses = losses
        self.weight_sum = weight_sum

    def construct(self, *inputs):
        _, weights = self.losses(*inputs)
        return ops.depend(weights, ops.assign_add(self.weight_sum, weights))


class TrainStep(nn.Cell):
    """Runs forward and backward pass and the update on one batch.

    In order: gradients of the scaled loss; the overflow flag; all-reduce of both, with the loss and the votes to stop
    beside the flag; unscale and clip by global norm; optimizer; EMA. After an overflow nothing changes but the loss
    scale (and running statistics of BatchNorm, which the forward pass has taken by then). Unscaling waits until it can
    share a pass over the gradients with clipping: both multiply by a scalar, which commutes with the reduction.

    **Losses that are not means.** A part of the loss with weights is its sum over all ranks and accumulated batches,
    divided by the sum of its weights over the same. On one batch a rank, the weights are all-reduced in the forward
    pass. With accumulation, the first backward pass needs the weights of batches still to come, so they are counted
    first: where `counts_first` is True, give `count` all batches of an update, then `construct` the same batches again.
    Parameters do not change within an update and noise is an input, so both passes see the same numbers. Where weights
    are a function of the batch alone (counts of matched anchors, of valid pixels) the compiler leaves the network out
    of `count`, which then costs nothing; where they arise in the network (sampled masks, refined points) it costs a
    forward pass. Rejected: totals given by the host, which only knows the former kind; a gradient sum for each part,
    which takes K backward passes and K times the memory of the gradients.

    Args:
        losses: the parts of the loss of a batch, see Losses.
        parameters: the weights that are trained.
        clip_norm: limit of the global gradient norm, or None.
        accumulation_steps: batches that make one update; see `construct`.
        reducer: averages a tuple of gradients over the devices, or None on one device.
        ranks: the number of devices.
        float_status: read the Ascend 910's overflow register, for its arithmetic saturates instead of giving inf.

    Attributes:
        loss_names: names of the parts of the loss, in the order in which outcomes hold them.
        counts_first: whether `count` is needed.
    """

    def __init__(
        self,
        losses,
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
        self.losses = losses
        self.loss_names = losses.names
        self.parameters = ParameterTuple(parameters)
        self.optimizer = optimizer
        self.loss_scale = loss_scale
        self.ema = ema
        self.clip_norm = clip_norm
        self.map = ops.HyperMap()
        self.global_norm = GlobalNorm()
        for cell in (self.global_norm, optimizer, ema):  # they run as the network does
            if cell is not None:
                set_device_options(cell, kernels=device_options(losses)["kernels"])
        self.reducer = reducer
        self.ranks = ranks
        self.all_reduce: Any = ops.AllReduce() if reducer is not None else None
        self.sum_over_ranks = SumOverRanks(self.all_reduce)
        scaled_loss = ScaledLoss(losses, ranks * accumulation_steps, self.sum_over_ranks)
        self.gradients = ops.value_and_grad(scaled_loss, None, self.parameters, has_aux=True)
        self.accumulation_steps = accumulation_steps
        self.counts_first = accumulation_steps > 1 and losses.weight_floors is not None
        if accumulation_steps > 1:
            self.gradient_sum = self.parameters.clone("gradient_sum", init="zeros")
            self.part_sum = _zeros("part_sum", (len(losses.names),))
            self.overflow_sum = _zeros("overflow_sum", ())
        if self.counts_first:
            self.weight_sum = _zeros("weight_sum", (len(losses.names),))
            self.counting = WeightCount(losses, self.weight_sum)
        self.float_status = float_status
        if float_status:
            self.get_status = NPUGetFloatStatusV2()
            self.clear_status = NPUClearFloatStatusV2()

    def count(self, *inputs):
        """Count the weights [K] of a batch of the coming update, and return them. Only where `counts_first` is True.

        BatchNorm normalises as in training, but does not take the batch into its running statistics yet.

        Args:
            inputs: those that `construct` will be given.
        """
        with running_statistics_kept(self.losses):
            return self.counting(*inputs)

    def accumulation_caveat(self) -> str | None:
        """Return one line on why accumulated batches are not one large batch, or None where they are."""
        if self.accumulation_steps == 1 or not batch_norms(self.losses):
            return None
        return (
            f"train.accumulation_steps: BatchNorm takes the statistics of each batch by itself, so "
            f"{self.accumulation_steps} accumulated batches are not one of {self.accumulation_steps} times the size"
        )

    def construct(self, learning_rate, update, stop_vote, *inputs):
        """Compute the gradients of one batch; with `update`, also update the weights.

        Args:
            learning_rate: float32 scalar.
            update: a Python bool. With accumulation, False for all batches of an update but the last.
            stop_vote: float32 scalar, 1 where this process has been asked to stop.
            inputs: the batch's arrays and the step's noise, as `losses` takes them. The network has to begin with the
                first.

        Returns:
            The update's outcome, the same on all devices, float32 [5 + K]: loss; global gradient norm before clipping;
            1 if the step was finite (otherwise it was skipped); the sum of the votes to stop; the loss scale that it
            used; the parts of the loss. Before the last batch of an update, only loss, parts, overflow and scale mean
            something, and they are this batch's.
        """
        scale = self.loss_scale.value + 0.0  # the value, not the parameter, which changes below
        if self.float_status:
            inputs = (ops.depend(inputs[0], self.clear_status(Tensor([0] * 8, ms.int32))),) + inputs[1:]
        total_weights = None
        if self.counts_first:
            total_weights = self.sum_over_ranks(self.weight_sum + 0.0)
        (_, parts), gradients = self.gradients(scale, total_weights, *inputs)
        overflows = self.count_overflows(reduce_sum(parts), gradients)

        if self.accumulation_steps > 1:
            self.map(ops.partial(add_part, self.accumulation_steps), self.gradient_sum, gradients)
            ops.assign_add(self.part_sum, parts / self.accumulation_steps)
            ops.assign_add(self.overflow_sum, overflows)
            if not update:
                loss = reduce_sum(parts)
                return outcome(loss, loss, 1.0 - overflows, ops.zeros_like(loss), scale, parts)
            gradients = self.gradient_sum
            parts = self.part_sum + 0.0  # the value, not the parameter that is reset below
            overflows = self.overflow_sum + 0.0

        votes = ops.zeros_like(overflows) + stop_vote
        if self.reducer is not None:
            gradients = self.reducer(gradients)
            of_rank = ops.concat((overflows.reshape(1), parts / self.ranks, votes.reshape(1)))
            sums = self.all_reduce(of_rank)
            overflows, parts, votes = sums[0], sums[1:-1], sums[-1]
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
            ops.assign(self.part_sum, ops.zeros_like(self.part_sum))
            ops.assign(self.overflow_sum, ops.zeros_like(self.overflow_sum))
        if self.counts_first:
            ops.assign(self.weight_sum, ops.zeros_like(self.weight_sum))
        return outcome(reduce_sum(parts), norm, finite.astype(ms.float32), votes, scale, parts)

    def count_overflows(self, loss, gradients):
        """Return 1.0 if this device's backward pass overflowed, else 0.0.

        This is checked before the reduction, for a saturated gradient carries no inf through it. On one device without
        a status register, the norm of the gradients shows an overflow, and is computed anyway.
        """
        finite = ops.isfinite(loss)
        if self.float_status:
            status = ops.depend(Tensor([0] * 8, ms.int32), gradients)
            finite = ops.logical_and(finite, ops.equal(self.get_status(status), 0).all())
        if self.reducer is not None:
            finite = ops.logical_and(finite, ops.isfinite(self.global_norm(gradients)))
        return 1.0 - finite.astype(ms.float32)

    def apply(self, gradients, factor, learning_rate):
        """Run the optimizer, then the EMA."""
        step = self.optimizer(gradients, learning_rate, factor)
        if self.ema is not None:
            self.ema(step)
        return step
