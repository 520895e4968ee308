"""The learning rate as a function of the step, and SGD as the paper uses it."""

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from eca_jax.config import OptimConfig
from eca_jax.errors import EcaJaxError

Schedule = Callable[[Any], Any]
"""step (from 0) -> learning rate."""


def learning_rate(config: OptimConfig, *, num_examples: int, batch_size: int, total_steps: int) -> Schedule:
    """step -> rate. Drops and decays count epochs from the start of the run, warm-up included."""
    warmup = round(config.warmup_epochs * num_examples / batch_size)
    if warmup > total_steps:
        raise EcaJaxError(
            f"optim.warmup_epochs: {config.warmup_epochs} epochs are {warmup} of the run's {total_steps} steps, so "
            "the rate would never reach optim.lr; use a shorter warm-up or more epochs"
        )

    def decay(factor: float, epochs: Iterable[int]) -> Schedule:
        """Times `factor` at the end of each of these epochs."""
        ends = np.asarray(sorted(epoch * num_examples // batch_size for epoch in epochs), np.int32)
        return lambda step: config.lr * factor ** jnp.searchsorted(ends, step, side="right")

    cosine = optax.cosine_decay_schedule(config.lr, max(total_steps - warmup, 1))
    schedules: dict[str, Schedule] = {
        "constant": lambda step: config.lr,
        "step": decay(config.drop_factor, config.drop_epochs),
        "exponential": decay(config.decay_per_epoch, range(1, total_steps * batch_size // num_examples + 2)),
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
