"""Compiles the training step of a configuration for a target, and reports its memory, time and communication there.

No device is used: the compilers for TPU and GPU run on the CPU. They compile the step that `train.py` runs, made by
`eca_jax.training.program.build_program`.
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax

from eca_jax.config import Config
from eca_jax.errors import EcaJaxError
from eca_jax.precompile.hlo import Collective, bytes_moved, find_collectives
from eca_jax.precompile.targets import GIB, Target, topology_devices
from eca_jax.sharding import make_mesh, sharded
from eca_jax.training.program import build_program
from eca_jax.training.warmup import fit_warmup


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one chip's HBM while the step runs, as the compiler planned it."""

    arguments: int
    """State and batch."""
    outputs: int
    """The next state and the loss."""
    aliased: int
    """The part of the outputs that reuses the memory of arguments: the donated state."""
    temporaries: int
    program: int
    """The machine code."""

    @property
    def peak(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.program


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled step; all numbers are those of one chip."""

    memory: Memory
    flops: float
    bytes_moved: float
    collectives: tuple[Collective, ...]
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of `eca-jax precompile`."""

    target: Target
    config: Config
    num_classes: int
    parameters: int
    state_bytes: int
    """Bytes of the parameters, statistics and the optimiser's state, in a checkpoint and on every chip."""
    step: Step

    @property
    def compute_seconds(self) -> float:
        """The least time that the chip's arithmetic units need for a step."""
        return self.step.flops / self.target.chip.peak_flops

    @property
    def memory_seconds(self) -> float:
        """The least time that the chip's memory needs for a step."""
        return self.step.bytes_moved / self.target.chip.hbm_bandwidth

    @property
    def all_reduce_seconds(self) -> float:
        """The least time of the all-reduces alone: in a ring of n chips, each sends 2 (n - 1) / n of the bytes."""
        reduced = sum(c.bytes * (c.times or 1) for c in self.step.collectives if c.kind == "all-reduce")
        return 2 * (self.target.chips - 1) / self.target.chips * reduced / self.target.link

    @property
    def roofline_seconds(self) -> float:
        """The least time of a step: arithmetic and memory traffic at the published peaks, at the same time."""
        return max(self.compute_seconds, self.memory_seconds)


class DoesNotFitError(Exception):
    """A step needs more memory than a chip has; both in bytes, and `needed` can be a lower bound."""

    def __init__(self, needed: float, available: float):
        super().__init__(f"needs {needed / GIB:.2f} of {available / GIB:.2f} GiB")
        self.needed = needed
        self.available = available


def precompile(
    config: Config,
    target: Target,
    *,
    num_classes: int,
    num_examples: int,
    started: Callable[[], None] = lambda: None,
) -> Report:
    """Compiles the step that `train` would run; `started` is called after all checks, before the long compilation.

    Raises:
      EcaJaxError: the step does not fit (the message has the bytes and a batch size that fits), the compiler is
        missing, or the batch cannot be split over the chips.
    """
    devices = topology_devices(target)
    config, _ = fit_warmup(config, num_examples)
    data = {"num_classes": num_classes, "num_examples": num_examples}
    program = build_program(config, make_mesh(devices), num_classes=num_classes, num_examples=num_examples)
    started()
    try:
        step = compile_step(config, target, devices, **data)
    except DoesNotFitError as failure:
        state = _bytes(program.abstract_state)
        raise EcaJaxError(_no(config, target, devices, failure, state, data)) from None
    return Report(
        target=target,
        config=config,
        num_classes=num_classes,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(program.abstract_state.params)),
        state_bytes=_bytes(program.abstract_state),
        step=step,
    )


def compile_step(config: Config, target: Target, devices, *, num_classes: int, num_examples: int) -> Step:
    """Compiles the step for the devices of a topology.

    Raises:
      DoesNotFitError: found by the compiler (TPU), or by comparing its plan with what JAX may use (GPU).
    """
    lowered = _lower(config, make_mesh(devices), num_classes=num_classes, num_examples=num_examples)
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise out_of_memory(str(error)) or error from None
    seconds = time.monotonic() - start
    memory = _memory(compiled.memory_analysis())
    available = target.chip.hbm * target.chip.share
    if memory.peak > available:
        raise DoesNotFitError(memory.peak, available)
    text, cost = compiled.as_text(), compiled.cost_analysis()
    if cost is None:  # XLA:GPU without a GPU
        one = _lower(config, make_mesh(jax.devices("cpu")[:1]), num_classes=num_classes, num_examples=num_examples)
        cost = {"flops": one.cost_analysis()["flops"] / target.chips, "bytes accessed": bytes_moved(text)}
    return Step(memory, cost["flops"], cost["bytes accessed"], tuple(find_collectives(text)), seconds)


def _lower(config: Config, mesh, *, num_classes: int, num_examples: int) -> Any:
    program = build_program(config, mesh, num_examples=num_examples, num_classes=num_classes)
    batch = sharded(config.task.abstract_batch(config.batch_size, num_classes), program.batch_sharding)
    return program.train_step.lower(program.abstract_state, batch)


def _memory(stats: Any) -> Memory:
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        program=stats.generated_code_size_in_bytes,
    )


def out_of_memory(message: str) -> DoesNotFitError | None:
    """The numbers in XLA:TPU's message about too little HBM; None if the message is about something else."""
    size = r"([\d.]+)([KMGT])"
    match = re.search(rf"\({size}\) exceeds available HBM \({size}\)|Used {size} of {size} hbm", message)
    if match is None:
        return None
    needed, needed_unit, available, available_unit = (group for group in match.groups() if group)
    power = {letter: 1024**n for n, letter in enumerate("KMGT", start=1)}
    return DoesNotFitError(float(needed) * power[needed_unit], float(available) * power[available_unit])


def _no(config: Config, target: Target, devices, failure: DoesNotFitError, state: int, data: dict) -> str:
    """The error: how much memory is needed, how much there is, and a batch size that was compiled and fits."""
    head = (
        f"{config.model.name} at batch_size {config.batch_size} does not fit {target.chip.name}: a chip needs "
        f"{failure.needed / GIB:.2f} GiB and has {failure.available / GIB:.2f} GiB for a program"
    )
    unit = batch_unit(config, target.chips)
    batch_size = config.batch_size
    while batch_size := smaller_batch(batch_size, failure.needed, failure.available, state, unit):
        smaller = dataclasses.replace(config, batch_size=batch_size)
        try:
            step = compile_step(smaller, target, devices, **data)
        except DoesNotFitError as error:
            failure = error
        else:
            return f"{head}; --batch-size {batch_size} fits (compiled: {step.memory.peak / GIB:.2f} GiB)"
    return f"{head}, and no smaller batch that {target.chips} chips can share fits either"


def batch_unit(config: Config, chips: int) -> int:
    """The smallest batch that the configuration allows on so many chips; groups that lie inside one chip stay there."""
    group, parts = config.model.batch_norm_group or 1, config.optim.accumulate
    inside = (config.batch_size // chips) % group == 0
    together = config.task.examples_together
    return math.lcm(chips * (group if inside else 1), group * parts, together * parts)


def smaller_batch(batch_size: int, needed: float, available: float, fixed: float, unit: int) -> int:
    """A batch that should fit, a multiple of `unit`; 0 if there is none below `batch_size`.

    Memory is close to affine in the batch: `fixed` bytes (the state) and the rest in proportion. 5% are left free.
    """
    room = max(0.95 * available - fixed, 0.0)
    estimate = batch_size * room / max(needed - fixed, 1.0)
    return int(min(estimate, batch_size - 1)) // unit * unit


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
