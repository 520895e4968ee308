"""The state of a training run. First its shapes and shardings are computed, then the arrays are created on the mesh."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from eca_jax.config import Config
from eca_jax.models.base import Backbone
from eca_jax.nn.norm import BatchNorm
from eca_jax.optim import Schedule, learning_rate, make_optimizer, rate_factors, total_steps
from eca_jax.sharding import state_shardings
from eca_jax.tasks.base import Sums, zero_sums


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All arrays of a run; a checkpoint holds them."""

    step: jax.Array
    """int32: steps done."""
    params: nnx.State
    batch_stats: nnx.State
    opt_state: optax.OptState
    sums: Sums
    """The totals for the next log row: of the steps since the last row, without the skipped ones."""
    skipped: jax.Array
    """int32: the number of skipped steps: their loss or gradient was not finite, so they changed no weight."""
    last_skipped: jax.Array
    """int32: the last skipped step; -1 if there is none."""
    average: tuple[nnx.State, nnx.State] | None = None
    """Moving averages of the parameters and batch statistics; None without `optim.ema_decay`."""

    @property
    def evaluated(self) -> tuple[nnx.State, nnx.State]:
        """The parameters and batch statistics for evaluation and conversion: the averages if there are any."""
        return self.average or (self.params, self.batch_stats)

    def with_weights(self, params: nnx.State, batch_stats: nnx.State) -> "TrainState":
        """The same state with other weights, also in place of the averages."""
        average = self.average and (params, batch_stats)
        return dataclasses.replace(self, params=params, batch_stats=batch_stats, average=average)


@dataclasses.dataclass(frozen=True)
class Network:
    """The model without its arrays, in training and in evaluation mode."""

    train: nnx.GraphDef[Backbone]
    eval: nnx.GraphDef[Backbone]


@dataclasses.dataclass(frozen=True)
class StatePlan:
    """A configuration on a mesh: the shapes, types and shardings of the state, and the function that creates it."""

    network: Network
    schedule: Schedule
    optimizer: optax.GradientTransformation
    abstract_state: TrainState
    """Shapes, types and shardings."""
    shardings: TrainState
    init: Callable[[], TrainState]
    """Jitted: creates the state before the first step, with its shardings."""


def plan_state(config: Config, mesh: Mesh, *, num_examples: int, num_classes: int) -> StatePlan:
    """Plans the state; no array is computed yet."""
    schedule = learning_rate(
        config.optim,
        num_examples=num_examples,
        batch_size=config.batch_size,
        total_steps=total_steps(config.epochs, num_examples, config.batch_size),
    )
    optimizer = make_optimizer(config.optim, schedule)

    def init() -> TrainState:
        return init_state(config, num_classes, optimizer)

    network = abstract_network(config, num_classes)
    shapes = jax.eval_shape(init)
    shardings = state_shardings(mesh, shapes, config.sharding_rules)
    abstract_state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
    return StatePlan(network, schedule, optimizer, abstract_state, shardings, jax.jit(init, out_shardings=shardings))


def split(model: Any) -> tuple[nnx.GraphDef[Backbone], nnx.State, nnx.State]:
    """Splits a model into structure, parameters and batch statistics (plain arrays); it may have no other variables."""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.as_pure(params), nnx.as_pure(batch_stats)


def abstract_network(config: Config, num_classes: int) -> Network:
    """The structure of the model; no array is computed."""
    model = nnx.eval_shape(lambda: config.task.build_model(config.model, num_classes, nnx.Rngs(0)))
    model.train()
    factors = rate_factors(config.optim, split(model)[1])
    for path, norm in nnx.iter_modules(model):
        if isinstance(norm, BatchNorm) and not functools.reduce(operator.getitem, path, factors)["scale"]:
            norm.eval()  # frozen
    train = nnx.graphdef(model)
    model.eval()
    return Network(train, nnx.graphdef(model))


def init_state(config: Config, num_classes: int, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step. A pure function, so that `jax.jit` can create it with its shardings."""
    _, params, batch_stats = split(config.task.build_model(config.model, num_classes, nnx.Rngs(config.seed)))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        sums=zero_sums(config.task.sums),
        skipped=jnp.zeros((), jnp.int32),
        last_skipped=jnp.full((), -1, jnp.int32),
        average=jax.tree.map(jnp.copy, (params, batch_stats)) if config.optim.ema_decay else None,
    )
