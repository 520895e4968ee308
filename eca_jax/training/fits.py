"""Checks that a step fits into memory: by arithmetic before compiling, and with the compiler's plan after it."""

import contextlib
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from eca_jax.config import Config
from eca_jax.memory import SMALLER, device_room, expect_room, host_room, names_lack_of_memory, needed_by
from eca_jax.runs.state import StatePlan
from eca_jax.sharding import sharded
from eca_jax.tasks.base import Batch, Task


def remedies(config: Config) -> list[str]:
    """What the user can do so that a step needs less memory, the cheapest first, except what is done already."""
    asked = {
        "a smaller --batch-size, or the same in parts: --optim.accumulate": True,
        "--model.dtype bfloat16": config.model.dtype != "bfloat16",
        "--model.rematerialise": not config.model.rematerialise,
        "`eca-jax precompile --target` says what fits other chips": True,
    }
    return [remedy for remedy, helps in asked.items() if helps]


def describe_step(config: Config) -> str:
    """What needs the memory, in an error."""
    size = config.task.preprocess.train_size
    return f"a training step of {config.model.name} on {config.batch_size} images of {size} x {size} pixels"


EVALUATION_REMEDIES = (
    SMALLER,
    "a smaller --batch-size in training, of which evaluations take the same",
    "more devices, which share a batch",
)


def describe_evaluation(task: Task, model: str, batch_size: int) -> str:
    """What needs the memory, in an error."""
    size = task.preprocess.image_size
    return f"an evaluation of {model} on {batch_size} images of {size} x {size} pixels"


def check_evaluation(task: Task, model: str, batches: NamedSharding, *, batch_size: int, threads: int) -> None:
    """Refuses an evaluation if the host has no memory for one batch of uint8 images in each of the loader's threads.

    Raises:
      EcaJaxError: it does not fit; says how much is needed at least, how much there is, and what to do.
    """
    what = f"in {threads} threads, loading {describe_evaluation(task, model, batch_size)}"
    held = int(threads * _share(batches) * batch_size * 3 * task.preprocess.image_size**2)
    expect_room(what, held, host_room(), EVALUATION_REMEDIES, at_least=True)


def _share(batches: NamedSharding) -> float:
    """The share of a global batch that this process holds."""
    return len(batches.addressable_devices) / batches.num_devices


def check_arithmetic(config: Config, plan: StatePlan, batches: NamedSharding, *, num_classes: int) -> None:
    """Refuses, before compiling, a step that cannot fit whatever the compiler does.

    Raises:
      EcaJaxError: it does not fit; says how much is needed at least, how much there is, and what to do.
    """
    what, batch = describe_step(config), config.task.abstract_batch(config.batch_size, num_classes)
    threads = config.data.num_threads
    held = int(threads * _share(batches) * _bytes(batch))  # each thread makes a batch
    fewer = ["a smaller --batch-size", "fewer --data.num-threads", SMALLER]
    expect_room(f"in {threads} threads, loading {what}", held, host_room(), fewer, at_least=True)
    check_evaluation(config.task, config.model.name, batches, batch_size=config.batch_size, threads=threads)
    room = device_room(jax.local_devices())
    if room is not None:
        needed = least_bytes(config, plan, batch, batches) * (len(batches.addressable_devices) if room.free else 1)
        expect_room(what, needed, room, remedies(config), at_least=True)


def least_bytes(config: Config, plan: StatePlan, batch: Batch, batches: NamedSharding) -> int:
    """The least memory of a step on one device: the state, its part of the batch (uint8), and the stages' outputs.

    The backward pass needs these outputs even if the inside of the blocks is computed again (`rematerialise`).
    """
    placed = sharded(batch, batches)
    parts = batches.num_devices * config.optim.accumulate
    return _bytes(plan.abstract_state) + _bytes(placed) + stage_bytes(plan, batch, config.model.dtype) // parts


def _bytes(abstract: Any) -> int:
    """The bytes of arrays with these shapes and types; with shardings, of the part on one device."""

    def size(leaf: Any) -> int:
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(abstract))


def stage_bytes(plan: StatePlan, batch: Batch, dtype: str) -> int:
    """Bytes of the outputs of all stages for a batch; 0 for a network without `feature_info`."""
    model: Any = nnx.merge(plan.network.eval, plan.abstract_state.params, plan.abstract_state.batch_stats)
    examples, height, width, _ = batch["image"].shape
    pixels = [
        (height // feature.stride) * (width // feature.stride) * feature.channels
        for feature in getattr(model, "feature_info", ())
    ]
    return examples * sum(pixels) * jnp.dtype(dtype).itemsize


def check_plan(config: Config, compiled: jax.stages.Compiled) -> None:
    """Refuses a compiled training step that needs more memory than there is.

    Raises:
      EcaJaxError: it does not fit; says how much is needed, how much there is, and what to do.
    """
    room = device_room(jax.local_devices())
    if room is not None:
        expect_room(describe_step(config), needed_by(compiled, room), room, remedies(config))


def names_lack_in_training(config: Config) -> contextlib.AbstractContextManager[None]:
    """Turns a lack of memory during training into one `EcaJaxError`."""
    return names_lack_of_memory(describe_step(config), remedies(config), jax.local_devices())


def names_lack_in_evaluation(task: Task, model: str, batch_size: int) -> contextlib.AbstractContextManager[None]:
    """Turns a lack of memory during an evaluation into one `EcaJaxError`."""
    return names_lack_of_memory(describe_evaluation(task, model, batch_size), EVALUATION_REMEDIES, jax.local_devices())
