"""Optimizers and parameter groups."""

import math

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.weights import OPTIMIZER_PREFIX


def decays(name: str, parameter: Parameter, no_weight_decay: tuple[str, ...] = ()) -> bool:
    """Whether weight decay applies: not to 1-D parameters, biases, or names that hold a word of `no_weight_decay`.

    Source: set_weight_decay in the original optimizer.py.
    """
    return len(parameter.shape) > 1 and not name.endswith(".bias") and not any(word in name for word in no_weight_decay)


adam_update = ops.MultitypeFuncGraph("adam_update")


@adam_update.register("Function", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor",
                      "Number", "Tensor", "Tensor", "Tensor", "Tensor")  # fmt: skip
def _adam_update(
    adam, learning_rate, rate, beta1, beta2, eps, uncorrected, decay, parameter, moment1, moment2, gradient
):
    """One parameter's update: decay, then the fused Adam kernel."""
    if decay > 0:
        ops.assign(parameter, parameter * (1 - learning_rate * decay))
    return adam(parameter, moment1, moment2, uncorrected, uncorrected, rate, beta1, beta2, eps, gradient)[0]


class AdamW(nn.Cell):
    """AdamW with bias correction (arXiv 1711.05101), the update of torch.optim.AdamW.

    At step t, with gradient g: p *= 1 - lr * decay; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps). MindSpore's nn.AdamWeightDecay leaves out the bias
    correction, which makes its first step 3.16 times as long.

    The fused Adam kernel does the work (4 times faster than the fused AdamWeightDecay kernel, on CPU, 28M parameters).
    Multiplying numerator and denominator of the quotient by sqrt(1 - b2^t) moves both corrections into its learning
    rate and epsilon. They are computed by expm1, for 1 - 0.999^t in float32 would lose four digits at the first steps.
    """

    def __init__(self, parameters, weight_decays: list[float], betas=(0.9, 0.999), eps=1e-8):
        """`weight_decays` has one entry per parameter."""
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.weight_decays = tuple(weight_decays)
        self.moment1 = self.parameters.clone(OPTIMIZER_PREFIX + "moment1", init="zeros")
        self.moment2 = self.parameters.clone(OPTIMIZER_PREFIX + "moment2", init="zeros")
        self.step = Parameter(Tensor(0, ms.int32), name=OPTIMIZER_PREFIX + "step", requires_grad=False)
        self.log_betas = tuple(math.log(beta) if beta > 0 else -math.inf for beta in betas)
        self.betas = tuple(Tensor(beta, ms.float32) for beta in betas)
        self.eps = eps
        self.uncorrected = Tensor(0.0, ms.float32)
        self.map = ops.HyperMap()
        self.adam = ops.Adam()
        self.expm1 = ops.Expm1()

    def state(self) -> list[Parameter]:
        """Everything that a checkpoint must hold."""
        return [self.step, *self.moment1, *self.moment2]

    def construct(self, gradients, learning_rate):
        """Update the parameters in place. `gradients` are in the order of the parameters; `learning_rate` a scalar."""
        ops.assign_add(self.step, 1)
        step = self.step.astype(ms.float32)
        correction1 = -self.expm1(step * self.log_betas[0])  # 1 - b1^t
        correction2 = ops.sqrt(-self.expm1(step * self.log_betas[1]))
        rate = learning_rate * correction2 / correction1
        eps = self.eps * correction2
        beta1, beta2 = self.betas
        update = ops.partial(adam_update, self.adam, learning_rate, rate, beta1, beta2, eps, self.uncorrected)
        self.map(update, self.weight_decays, self.parameters, self.moment1, self.moment2, gradients)
        return step


def create_optimizer(model: nn.Cell, weight_decay: float, betas: list[float], eps: float) -> AdamW:
    """AdamW over a model's trainable parameters, decaying those that the originals decay."""
    parameters = model.trainable_params()
    exempt = getattr(model, "no_weight_decay", ())
    weight_decays = [weight_decay if decays(p.name, p, exempt) else 0.0 for p in parameters]
    return AdamW(parameters, weight_decays, betas, eps)
