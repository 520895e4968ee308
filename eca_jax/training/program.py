"""What a configuration becomes on a mesh: compiled functions, and the shapes and places of what they take."""

import collections
import contextlib
import ctypes
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from eca_jax.compiler_options import compiler_options
from eca_jax.config import Config
from eca_jax.memory import Fitting
from eca_jax.models.config import param_dtype
from eca_jax.runs.state import StatePlan, plan_state
from eca_jax.sharding import batch_sharding, replicated
from eca_jax.tasks.base import Sums, zero_sums
from eca_jax.training.fits import EVALUATION_REMEDIES, describe_evaluation
from eca_jax.training.step import make_eval_step, make_train_step

STEPS_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Program(StatePlan):
    """The plan of the state, and the functions that take it from step to step."""

    batch_sharding: NamedSharding
    train_step: jax.stages.Wrapped
    eval_step: Fitting
    zero_sums: Callable[[], Sums]


def build_program(
    config: Config,
    mesh: Mesh,
    *,
    num_examples: int,
    num_classes: int,
    candidates: Sequence[int] | None = None,
    batch_size: int | None = None,
    each: bool = False,
) -> Program:
    """Nothing is computed yet; each function compiles at its first call.

    Args:
      config: of the run.
      mesh: where it runs.
      num_examples, num_classes: of the training data.
      candidates: the classes that a prediction may name in an evaluation; None is all.
      batch_size: None is the configuration's.
      each: whether the evaluation says something of each example, as of `make_eval_step`.
    """
    plan = plan_state(config, mesh, num_examples=num_examples, num_classes=num_classes)
    batches, scalars = batch_sharding(mesh, batch_size or config.batch_size), replicated(mesh)
    options = compiler_options(mesh.devices.flat[0].platform)
    return Program(
        **vars(plan),
        batch_sharding=batches,
        train_step=jax.jit(
            make_train_step(config, plan.network, plan.optimizer),
            in_shardings=(plan.shardings, batches),
            out_shardings=(plan.shardings, scalars),
            donate_argnums=0,
            compiler_options=options,
        ),
        eval_step=Fitting(
            jax.jit(
                make_eval_step(config.task, plan.network.eval, param_dtype(config.model), candidates, each=each),
                in_shardings=(plan.shardings.params, plan.shardings.batch_stats, batches, scalars),
                out_shardings=scalars,
                compiler_options=options,
            ),
            describe_evaluation(config.task, config.model.name, batch_size or config.batch_size),
            EVALUATION_REMEDIES,
        ),
        zero_sums=jax.jit(lambda: zero_sums(config.task.sums), out_shardings=scalars),
    )


def compile_step(step: jax.stages.Wrapped, *args: Any) -> jax.stages.Compiled:
    """A jitted function compiled for such arguments, and the memory that this took given back to the system.

    Else the C library keeps what the compiler has freed: 0.4 GiB after ResNet-50's step.
    """
    compiled = step.lower(*args).compile()
    with contextlib.suppress(AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    return compiled


class InFlight:
    """Keeps the host from running far ahead of the devices: waits for what was added a few steps ago, reads nothing."""

    def __init__(self):
        self._queue = collections.deque()

    def add(self, result: jax.Array) -> None:
        self._queue.append(result)
        if len(self._queue) > STEPS_IN_FLIGHT:
            self._queue.popleft().block_until_ready()
