"""The pure training and evaluation steps, and the state that they map to the next.

    uint8 images -> float, normalised, mixed -> logits -> loss -> gradients -> optimiser -> new state

Nothing here knows about devices: the caller jits these functions with shardings and donates the state. Sums for the log
stay in the state, so that a run resumed between two log rows writes the same rows.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import DTypeLike

from eca_jax.config import Config, ModelConfig, OptimConfig
from eca_jax.data.loader import Batch
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Architecture, Backbone
from eca_jax.models.registry import create_model, resolve_attention
from eca_jax.nn.norm import BatchNorm
from eca_jax.optim import rate_factors
from eca_jax.tasks.mix import mix

Sums = dict[str, jax.Array]
"""Totals over examples (loss, top1, top5, count), scalars of float32."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a checkpoint holds: arrays only."""

    step: jax.Array
    """int32: steps done."""
    params: nnx.State
    batch_stats: nnx.State
    opt_state: optax.OptState
    sums: Sums
    """Of the steps since the last that `log_every` divides, skipped ones apart."""
    skipped: jax.Array
    """int32: the steps whose loss or gradient was not finite, which changed no weight."""
    last_skipped: jax.Array
    """int32: the last of them; -1 while there is none."""
    average: tuple[nnx.State, nnx.State] | None = None
    """Moving averages of parameters and batch statistics, where `optim.ema_decay` asks for them."""

    @property
    def evaluated(self) -> tuple[nnx.State, nnx.State]:
        """The parameters and batch statistics to evaluate and to keep."""
        return self.average or (self.params, self.batch_stats)

    def with_weights(self, params: nnx.State, batch_stats: nnx.State) -> "TrainState":
        """The same state with other weights, their average included."""
        average = self.average and (params, batch_stats)
        return dataclasses.replace(self, params=params, batch_stats=batch_stats, average=average)


@dataclasses.dataclass(frozen=True)
class Network:
    """The model without its arrays: two views of one set of weights."""

    train: nnx.GraphDef[Backbone]
    eval: nnx.GraphDef[Backbone]


def build_model(config: Config, num_classes: int, rngs: nnx.Rngs) -> Backbone:
    """The model that the configuration describes, with fresh weights."""
    model = config.model
    return create_model(
        model.name,
        num_classes=num_classes,
        rngs=rngs,
        attention=model.attention,
        small_stem=model.small_stem,
        width_multiplier=model.width_multiplier,
        dropout=model.dropout,
        drop_path=model.drop_path,
        rematerialise=model.rematerialise,
        batch_norm_group=model.batch_norm_group,
        dtype=jnp.dtype(model.dtype),
        param_dtype=param_dtype(config),
    )


def param_dtype(config: Config) -> np.dtype:
    """Of parameters, statistics, and the images as they enter the network: float32 or wider."""
    return jnp.promote_types(config.model.dtype, jnp.float32)


def split(model: Backbone) -> tuple[nnx.GraphDef[Backbone], nnx.State, nnx.State]:
    """A model -> its structure, parameters and batch statistics (plain arrays). Fails if it has any other variable."""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.as_pure(params), nnx.as_pure(batch_stats)


def abstract_network(config: Config, num_classes: int) -> Network:
    """The structure of the model; nothing is computed and no memory is spent."""
    model = nnx.eval_shape(lambda: build_model(config, num_classes, nnx.Rngs(0)))
    model.train()
    factors = rate_factors(config.optim, split(model)[1])
    for path, norm in nnx.iter_modules(model):
        if isinstance(norm, BatchNorm) and not functools.reduce(operator.getitem, path, factors)["scale"]:
            norm.eval()  # frozen
    train = nnx.graphdef(model)
    model.eval()
    return Network(train, nnx.graphdef(model))


def init_state(config: Config, num_classes: int, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step. Pure: `jax.jit(..., out_shardings=...)` makes it where it belongs."""
    _, params, batch_stats = split(build_model(config, num_classes, nnx.Rngs(config.seed)))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        sums=zero_sums(),
        skipped=jnp.zeros((), jnp.int32),
        last_skipped=jnp.full((), -1, jnp.int32),
        average=jax.tree.map(jnp.copy, (params, batch_stats)) if config.optim.ema_decay else None,
    )


def architecture(model: ModelConfig, num_classes: int) -> Architecture:
    """What `build_model` makes, by name."""
    attention = resolve_attention(model.name, model.attention)
    return Architecture(model.name, num_classes, attention, model.small_stem, model.width_multiplier)


def pretrained_weights(config: Config, num_classes: int) -> tuple[nnx.State, nnx.State]:
    """Parameters and batch statistics of `model.pretrained`; what `model.skip` names is as fresh as the seed makes it.

    Raises:
      EcaJaxError: the weights are not there, or not of the model that the configuration describes.
    """
    model = create_model(
        config.model.name,
        num_classes=num_classes,
        rngs=nnx.Rngs(config.seed),
        pretrained=config.model.pretrained,
        skip=config.model.skip,
        param_dtype=param_dtype(config),
    )
    if model.architecture != (expected := architecture(config.model, num_classes)):
        raise EcaJaxError(
            f"model.pretrained: {config.model.pretrained} is of {model.architecture}, the configuration of {expected}"
        )
    _, params, batch_stats = split(model)
    return params, batch_stats


def zero_sums() -> Sums:
    """Sums over no example."""
    return {name: jnp.zeros((), jnp.float32) for name in ("loss", "top1", "top5", "count")}


def normalise(image: jax.Array, config: PreprocessConfig, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """uint8 (b, h, w, 3) -> (image / 255 - mean) / std in `dtype`."""
    mean, std = (jnp.asarray(value, dtype) for value in (config.mean, config.std))
    return (image.astype(dtype) / 255 - mean) / std


def right_classes(label: jax.Array, num_classes: int) -> jax.Array:
    """int32 (b) or bool (b, classes) -> bool (b, classes)."""
    return label if label.ndim == 2 else label[:, None] == jnp.arange(num_classes)


def score(logits: jax.Array, batch: Batch, losses: jax.Array) -> Sums:
    """Sums over the examples whose mask is 1.

    Of an example with several labels the one with the highest logit counts, against the classes that are wrong.
    Ties count as wrong, so equal logits (or NaN) never score.
    """
    right = right_classes(batch["label"], logits.shape[-1])
    best = jnp.max(logits, axis=1, keepdims=True, where=right, initial=-jnp.inf)
    rank = 1 + jnp.sum(~right & (logits >= best), axis=1)
    rank = jnp.where(best[:, 0] > -jnp.inf, rank, 0)  # not NaN
    mask = batch["mask"]
    return {
        "loss": jnp.sum(jnp.where(mask > 0, losses, 0.0)).astype(jnp.float32),
        "top1": jnp.sum(mask * (rank == 1)),
        "top5": jnp.sum(mask * ((rank >= 1) & (rank <= 5))),
        "count": jnp.sum(mask),
    }


def losses_of(logits: jax.Array, targets: jax.Array, config: OptimConfig) -> jax.Array:
    """Logits and targets (b, classes) -> the loss of every example (b)."""
    if config.loss == "softmax":
        return optax.softmax_cross_entropy(logits, targets)
    if config.target_threshold is not None:
        targets = (targets > config.target_threshold).astype(targets.dtype)
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)


def make_train_step(
    config: Config, network: Network, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]:
    """(state, global batch) -> (next state, loss). The loss is for waiting on the step: reading it is not needed."""
    dtype, optim = param_dtype(config), config.optim

    def loss_fn(params: nnx.State, batch_stats: nnx.State, batch: Batch, key: jax.Array):
        """-> loss, (batch statistics, sums)."""
        params = jax.tree.map(
            lambda p, factor: p if factor else jax.lax.stop_gradient(p), params, rate_factors(optim, params)
        )
        model = nnx.merge(network.train, params, batch_stats)
        dropout_key, mix_key = jax.random.split(key)
        image = normalise(batch["image"], config.preprocess, dtype)
        targets = optax.smooth_labels(
            jax.nn.one_hot(batch["label"], model.architecture.num_classes), optim.label_smoothing
        )
        image, targets = mix(image, targets.astype(dtype), mix_key, config.mix)
        logits = model(image, rngs=nnx.Rngs(dropout=dropout_key))
        losses = losses_of(logits, targets, optim)
        _, _, batch_stats = split(model)
        return losses.mean(), (batch_stats, score(logits, batch, losses))

    def gradients(state: TrainState, batch: Batch):
        """-> (loss, (batch statistics, sums)), gradients."""
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        if optim.accumulate == 1:
            return grad_fn(state.params, state.batch_stats, batch, key)

        def part(total, inputs):
            i, batch = inputs
            result = grad_fn(state.params, state.batch_stats, batch, jax.random.fold_in(key, i))
            return jax.tree.map(jnp.add, total, result), None

        parts = cut(batch, optim.accumulate, config.model.batch_norm_group or 1)
        shapes = jax.eval_shape(grad_fn, state.params, state.batch_stats, jax.tree.map(lambda x: x[0], parts), key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(part, zeros, (jnp.arange(optim.accumulate), parts))
        ((_, (_, sums)), _) = total
        (loss, (batch_stats, _)), grads = jax.tree.map(lambda leaf: leaf / optim.accumulate, total)
        return (loss, (batch_stats, sums)), grads

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        (loss, (batch_stats, sums)), grads = gradients(state, batch)
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = (optax.apply_updates(state.params, updates), batch_stats, opt_state, sums)
        old = (state.params, state.batch_stats, state.opt_state, jax.tree.map(jnp.zeros_like, sums))
        new = params, batch_stats, opt_state, sums = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        average = state.average
        if optim.ema_decay:
            decay = jnp.minimum(optim.ema_decay, (1 + state.step) / (10 + state.step))
            average = jax.tree.map(lambda a, n: (decay * a + (1 - decay) * n).astype(a.dtype), average, new[:2])
        new_row = state.step % config.log_every == 0
        state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            sums={name: jnp.where(new_row, 0.0, state.sums[name]) + sums[name] for name in sums},
            skipped=state.skipped + ~finite,
            last_skipped=jnp.where(finite, state.last_skipped, state.step + 1),
            average=average,
        )
        return state, loss

    return train_step


def cut(batch: Batch, parts: int, group: int) -> Batch:
    """(b, ...) -> (parts, b / parts, ...): part i has every `parts`-th group of rows, from the i-th on.

    So each device cuts its own rows, and the groups stay whole.
    """

    def cut_leaf(x: jax.Array) -> jax.Array:
        groups = x.reshape(-1, parts, group, *x.shape[1:])
        return groups.swapaxes(0, 1).reshape(parts, -1, *x.shape[1:])

    return jax.tree.map(cut_leaf, batch)


def make_eval_step(
    model: nnx.GraphDef[Backbone],
    preprocess: PreprocessConfig,
    dtype: DTypeLike = jnp.float32,
    candidates: Sequence[int] | None = None,
) -> Callable[[nnx.State, nnx.State, Batch, Sums], Sums]:
    """(parameters, batch statistics, batch, sums so far) -> sums with this batch.

    The loss of an image with several labels is the mean of their cross entropies. `candidates` are the classes that a
    prediction may name; None is all.
    """

    def eval_step(params: nnx.State, batch_stats: nnx.State, batch: Batch, sums: Sums) -> Sums:
        logits = nnx.merge(model, params, batch_stats)(normalise(batch["image"], preprocess, dtype))
        if candidates is not None:
            allowed = jnp.zeros(logits.shape[-1], bool).at[jnp.asarray(candidates)].set(True)
            logits = jnp.where(allowed, logits, -jnp.inf)
        right = right_classes(batch["label"], logits.shape[-1])
        losses = -jnp.mean(jax.nn.log_softmax(logits), axis=1, where=right)
        scores = score(logits, batch, losses)
        return {name: sums[name] + scores[name] for name in sums}

    return eval_step
