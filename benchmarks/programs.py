"""Training steps, to be timed here or to be compiled for a chip that is not here."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from eca_jax.config import Config
from eca_jax.sharding import make_mesh, sharded
from eca_jax.training.program import build_program, compile_step


def training_step(config: Config, num_classes: int) -> Callable[[], None]:
    """A training step on random images, on the first device; a call returns when its work is done."""
    program = build_program(
        config, make_mesh(jax.devices()[:1]), num_examples=100 * config.batch_size, num_classes=num_classes
    )
    state, rng = program.init(), np.random.default_rng(0)
    size = config.task.preprocess.train_size
    examples = {
        "image": rng.integers(0, 256, (config.batch_size, size, size, 3), np.uint8),
        "label": rng.integers(0, num_classes, config.batch_size, np.int32),
        "mask": np.ones(config.batch_size, np.float32),
    }
    examples = jax.device_put(examples, program.batch_sharding)
    train_step = compile_step(program.train_step, state, examples)

    def step() -> None:
        nonlocal state
        state, loss = train_step(state, examples)
        loss.block_until_ready()

    return step


def lower_training_step(config: Config, num_classes: int, device: Any) -> jax.stages.Lowered:
    """The training step for one device, which may be of a chip that is not here."""
    program = build_program(config, make_mesh([device]), num_examples=100 * config.batch_size, num_classes=num_classes)
    batch = sharded(config.task.abstract_batch(config.batch_size, num_classes), program.batch_sharding)
    return program.train_step.lower(program.abstract_state, batch)
