"""A training step without what hides the gradients: plain gradient descent, no average, no clipping."""

from focal_twins.config.schema import OptimizerConfig
from focal_twins.training.optimizer import create_optimizer
from focal_twins.training.train_step import LossScale, TrainStep


def plain_step(losses, model, scale=1024.0, **arguments):
    """The step of a model's losses at a loss scale; further arguments are TrainStep's."""
    optimizer = OptimizerConfig(name="sgd", momentum=0.0, nesterov=False, weight_decay=0.0)
    loss_scale = LossScale(scale, dynamic=True, growth_interval=2000)
    step = TrainStep(losses, model.trainable_params(), create_optimizer(model, optimizer), loss_scale, **arguments)
    return step.set_train()
