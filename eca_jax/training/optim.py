"""The learning rate as a function of the step, and SGD as the paper uses it."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from eca_jax.config import OptimConfig

Schedule = Callable[[Any], Any]
"""step (from 0) -> learning rate."""


def learning_rate(config: OptimConfig, *, num_examples: int, batch_size: int, total_steps: int) -> Schedule:
    """step -> rate. Drops and decays count epochs from the start of the run, warm-up included."""
    warmup = round(config.warmup_epochs * num_examples / batch_size)
    drops = {epoch * num_examples // batch_size: config.drop_factor for epoch in config.drop_epochs}
    cosine = optax.cosine_decay_schedule(config.lr, max(total_steps - warmup, 1))
    schedules: dict[str, Schedule] = {
        "constant": lambda step: config.lr,
        "step": optax.piecewise_constant_schedule(config.lr, drops),
        "exponential": lambda step: config.lr * config.decay_per_epoch ** jnp.floor(step * (batch_size / num_examples)),
        "cosine": lambda step: cosine(jnp.maximum(step - warmup, 0)),
    }
    schedule = schedules[config.schedule]
    return lambda step: jnp.asarray(schedule(step) * (jnp.minimum((step + 1) / warmup, 1.0) if warmup else 1.0))


def sgd(config: OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    """g += decay * p; v = momentum * v + g; p -= rate * v: PyTorch's SGD, the decay on every parameter."""
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.trace(config.momentum),
        optax.scale_by_learning_rate(schedule),
    )
