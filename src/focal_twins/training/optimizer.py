"""Defines the optimizers AdamW, SGD and LAMB, and the weight decay and learning rate of each parameter."""

import math

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from focal_twins.config.schema import OptimizerConfig
from focal_twins.files.weights import OPTIMIZER_PREFIX, official_name
from focal_twins.models.compiled import CompiledAdamW, KernelLayer

multiply = ops.MultitypeFuncGraph("multiply")


@multiply.register("Tensor", "Tensor")
def _multiply(factor, gradient):
    return gradient * factor


def has_weight_decay(
    name: str, parameter: Parameter, no_weight_decay: tuple[str, ...] = (), words: list[str] | None = None
) -> bool:
    """Return whether weight decay applies to a parameter.

    It does not apply to 1-D parameters, biases, and names that hold a word of `no_weight_decay`. Source:
    set_weight_decay in the original optimizer.py.

    Args:
        words: in place of all that, spare exactly the parameters whose official name holds one of these words. Source:
            paramwise_cfg (custom_keys with decay_mult=0) of the originals for dense prediction.
    """
    if words is not None:
        return not any(word in official_name(name) for word in words)
    return len(parameter.shape) > 1 and not name.endswith(".bias") and not any(word in name for word in no_weight_decay)


def layer_rate_scales(model: nn.Cell, names: list[str], layer_decay: float) -> list[float]:
    """Return the factor of each named parameter's learning rate: layer_decay^(blocks between it and the head).

    Source: layer-wise rate decay as in BEiT (arXiv 2106.08254, appendix), over the blocks of all stages in turn.
    """
    if layer_decay == 1:
        return [1.0] * len(names)
    last = sum(model.depths) + 1
    return [layer_decay ** (last - model.block_index(name)) for name in names]


class Optimizer(nn.Cell):
    """Holds what all optimizers have: parameters with their decay and rate, moments, the count of updates.

    A subclass lists its moments, tuples in the order of the parameters, in `moments`, and defines
    `construct(gradients, learning_rate, factor)`, which updates the parameters in place and returns the float number of
    updates made, this one included. Gradients are in the order of the parameters; learning rate and factor, by which
    gradients are multiplied first, are scalar tensors.

    Args:
        weight_decays: weight decay of each parameter.
        rate_scales: factor of each parameter's learning rate, decay included; None: all 1.
    """

    def __init__(self, parameters, weight_decays: list[float], rate_scales: list[float] | None = None):
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        # Python numbers, so that operations which a parameter does not need are not in the graph.
        self.weight_decays = tuple(weight_decays)
        self.rate_scales = (1.0,) * len(self.parameters) if rate_scales is None else tuple(rate_scales)
        self.step = Parameter(Tensor(0, ms.int32), name=OPTIMIZER_PREFIX + "step", requires_grad=False)
        self.map = ops.HyperMap()

    def zeros(self, name: str) -> ParameterTuple:
        """Make a moment of every parameter, which starts at zero."""
        return self.parameters.clone(OPTIMIZER_PREFIX + name, init="zeros")

    def state(self) -> list[Parameter]:
        """List the tensors that a checkpoint must hold."""
        return [self.step, *(moment for moments in self.moments for moment in moments)]

    def multiplied(self, gradients, factor):
        """Multiply all gradients by a factor."""
        return self.map(ops.partial(multiply, factor), gradients)

    def count_step(self):
        """Count this update; return the number of updates made, this one included, as a float scalar."""
        ops.assign_add(self.step, 1)
        return self.step.astype(ms.float32)


adam_update = ops.MultitypeFuncGraph("adam_update")
sgd_update = ops.MultitypeFuncGraph("sgd_update")
lamb_update = ops.MultitypeFuncGraph("lamb_update")


@adam_update.register("Function", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor",
                      "Number", "Number", "Tensor", "Tensor", "Tensor", "Tensor")  # fmt: skip
def _adam_update(
    adam, learning_rate, rate, beta1, beta2, eps, uncorrected, decay, scale, parameter, moment1, moment2, gradient
):
    """Update one parameter: weight decay, then the fused Adam kernel."""
    if scale != 1:
        learning_rate = learning_rate * scale
        rate = rate * scale
    if decay > 0:
        ops.assign(parameter, parameter * (1 - learning_rate * decay))
    return adam(parameter, moment1, moment2, uncorrected, uncorrected, rate, beta1, beta2, eps, gradient)[0]


class AdamW(Optimizer, KernelLayer):
    """Updates parameters by AdamW with bias correction (arXiv 1711.05101), as torch.optim.AdamW does.

    At step t, with gradient g: p *= 1 - lr * decay; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps). MindSpore's nn.AdamWeightDecay leaves out the bias
    correction, which makes its first step 3.16 times as long.

    The fused Adam kernel does the work (4 times faster than the fused AdamWeightDecay kernel, on CPU, 28M parameters).
    Multiplying numerator and denominator of the quotient by sqrt(1 - b2^t) moves both corrections into its learning
    rate and epsilon. They are computed by expm1, as 1 - 0.999^t in float32 would lose four digits at the first steps.
    """

    def __init__(self, parameters, weight_decays, betas=(0.9, 0.999), eps=1e-8, rate_scales=None):
        super().__init__(parameters, weight_decays, rate_scales)
        self.moment1, self.moment2 = self.moments = (self.zeros("moment1"), self.zeros("moment2"))
        self.log_betas = log_betas(betas)
        self.betas = tuple(Tensor(beta, ms.float32) for beta in betas)
        self.eps = eps
        self.uncorrected = Tensor(0.0, ms.float32)
        self.adam = ops.Adam()
        self.expm1 = ops.Expm1()
        self.kernel = None

    def make_kernel(self, library):
        return CompiledAdamW(library, self.weight_decays, self.rate_scales)

    def construct(self, gradients, learning_rate, factor):
        step = self.count_step()
        correction1 = -self.expm1(step * self.log_betas[0])  # 1 - b1^t
        correction2 = ops.sqrt(-self.expm1(step * self.log_betas[1]))
        rate = learning_rate * correction2 / correction1
        eps = self.eps * correction2
        beta1, beta2 = self.betas
        if self.kernel is not None:
            numbers = ops.stack((learning_rate, rate, beta1, beta2, eps, factor))
            done = self.kernel(numbers, self.parameters, self.moment1, self.moment2, gradients)
            return ops.depend(step, done)
        gradients = self.multiplied(gradients, factor)
        update = ops.partial(adam_update, self.adam, learning_rate, rate, beta1, beta2, eps, self.uncorrected)
        self.map(update, self.weight_decays, self.rate_scales, self.parameters, self.moment1, self.moment2, gradients)
        return step


@sgd_update.register("Function", "Tensor", "Number", "Bool", "Number", "Number", "Tensor", "Tensor", "Tensor")
def _sgd_update(apply_momentum, learning_rate, momentum, nesterov, decay, scale, parameter, velocity, gradient):
    """Update one parameter: weight decay as a part of the gradient, then the fused kernel."""
    if scale != 1:
        learning_rate = learning_rate * scale
    if decay > 0:
        gradient = gradient + parameter * decay
    if nesterov:
        apply_momentum(parameter, velocity, learning_rate * momentum, gradient, momentum)
        return ops.assign_sub(parameter, gradient * learning_rate)
    return apply_momentum(parameter, velocity, learning_rate, gradient, momentum)


class SGD(Optimizer):
    """Updates parameters by stochastic gradient descent with momentum, as torch.optim.SGD does.

    With gradient g: g += decay * p; v = momentum * v + g; p -= lr * v, or with Nesterov's (arXiv 1212.0901, section
    3.5) p -= lr * (g + momentum * v). The rate is not a part of v, so that a change of it acts at once.

    On CPU the fused kernel ignores its use_nesterov: Nesterov's step is a plain one of rate lr * momentum and one of lr
    along the gradient.
    """

    def __init__(self, parameters, weight_decays, momentum=0.9, nesterov=True, rate_scales=None):
        super().__init__(parameters, weight_decays, rate_scales)
        self.velocity = self.zeros("velocity")
        self.moments = (self.velocity,)
        self.momentum = momentum
        self.nesterov = nesterov
        self.apply_momentum = ops.ApplyMomentum()

    def construct(self, gradients, learning_rate, factor):
        step = self.count_step()
        gradients = self.multiplied(gradients, factor)
        update = ops.partial(sgd_update, self.apply_momentum, learning_rate, self.momentum, self.nesterov)
        self.map(update, self.weight_decays, self.rate_scales, self.parameters, self.velocity, gradients)
        return step


@lamb_update.register("Tensor", "Tensor", "Tensor", "Number", "Number", "Number",
                      "Number", "Number", "Tensor", "Tensor", "Tensor", "Tensor")  # fmt: skip
def _lamb_update(
    learning_rate, correction1, correction2, beta1, beta2, eps, decay, scale, parameter, moment1, moment2, gradient
):
    """Update one parameter."""
    first = moment1 * beta1 + gradient * (1 - beta1)
    second = moment2 * beta2 + ops.square(gradient) * (1 - beta2)
    direction = (first / correction1) / (ops.sqrt(second / correction2) + eps)
    if decay > 0:
        direction = direction + parameter * decay
        weight_norm, direction_norm = ops.sqrt(ops.square(parameter).sum()), ops.sqrt(ops.square(direction).sum())
        nonzero = ops.logical_and(weight_norm > 0, direction_norm > 0)
        # Both branches are computed, so the divisor must not be 0 where the other branch is chosen either.
        one = ops.ones_like(direction_norm)
        ratio = ops.select(nonzero, weight_norm / ops.select(nonzero, direction_norm, one), one)
        direction = direction * ratio
    if scale != 1:
        learning_rate = learning_rate * scale
    ops.assign(moment1, first)
    ops.assign(moment2, second)
    return ops.assign(parameter, parameter - direction * learning_rate)


class LAMB(Optimizer):
    """Updates parameters by LAMB (arXiv 1904.00962, algorithm 2) with bias correction.

    At step t, with gradient g: m and v as in AdamW; u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay * p;
    p -= lr * |p| / |u| * u, of each parameter by itself. The ratio is 1 where either norm is 0, and for parameters
    without weight decay (biases, norms), as in timm; gradients are clipped by the train step.
    """

    def __init__(self, parameters, weight_decays, betas=(0.9, 0.999), eps=1e-8, rate_scales=None):
        super().__init__(parameters, weight_decays, rate_scales)
        self.moment1, self.moment2 = self.moments = (self.zeros("moment1"), self.zeros("moment2"))
        self.log_betas = log_betas(betas)
        self.betas = tuple(betas)  # numbers: 1 - 0.999 in float32 would be off by 5e-5
        self.eps = eps
        self.expm1 = ops.Expm1()

    def construct(self, gradients, learning_rate, factor):
        step = self.count_step()
        gradients = self.multiplied(gradients, factor)
        correction1, correction2 = -self.expm1(step * self.log_betas[0]), -self.expm1(step * self.log_betas[1])
        beta1, beta2 = self.betas
        update = ops.partial(lamb_update, learning_rate, correction1, correction2, beta1, beta2, self.eps)
        self.map(update, self.weight_decays, self.rate_scales, self.parameters, self.moment1, self.moment2, gradients)
        return step


def log_betas(betas: list[float]) -> tuple[float, ...]:
    """Return the logarithms of betas, with which 1 - beta^t is -expm1(t log(beta))."""
    return tuple(math.log(beta) if beta > 0 else -math.inf for beta in betas)


def create_optimizer(model: nn.Cell, options: OptimizerConfig) -> Optimizer:
    """Create the configured optimizer of a model's trainable parameters; it decays those that the originals decay."""
    parameters = model.trainable_params()
    exempt = getattr(model, "no_weight_decay", ())
    words = options.no_weight_decay
    weight_decays = [options.weight_decay if has_weight_decay(p.name, p, exempt, words) else 0.0 for p in parameters]
    rate_scales = layer_rate_scales(model, [p.name for p in parameters], options.layer_decay)
    match options.name:
        case "adamw":
            return AdamW(parameters, weight_decays, options.betas, options.eps, rate_scales)
        case "sgd":
            return SGD(parameters, weight_decays, options.momentum, options.nesterov, rate_scales)
        case "lamb":
            return LAMB(parameters, weight_decays, options.betas, options.eps, rate_scales)
    raise ValueError(f"unknown optimizer {options.name!r}")
