"""Training: state, step, sharding, checkpoints and the loop."""

from eca_jax.training.loop import (
    evaluate_run as evaluate_run,
    load_run as load_run,
    train as train,
)
