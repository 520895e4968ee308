"""The pure training and evaluation steps: functions that map a state and a batch to the next state.

    batch -> the task's loss (forward pass) -> gradients -> optimiser -> new state

Nothing here knows about devices: the caller jits these functions with shardings and donates the state. Sums for the log
stay in the state, so that a run resumed between two log rows writes the same rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from eca_jax.config import Config
from eca_jax.models.config import param_dtype
from eca_jax.optim import rate_factors
from eca_jax.runs.state import Network, TrainState, split
from eca_jax.tasks.base import Batch, Sums, Task


def make_train_step(
    config: Config, network: Network, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]:
    """(state, global batch) -> (next state, loss). The loss is for waiting on the step: reading it is not needed."""
    gradients = make_gradients(config, network)
    optim = config.optim

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
            sums=add({name: jnp.where(new_row, 0.0, total) for name, total in state.sums.items()}, sums),
            skipped=state.skipped + ~finite,
            last_skipped=jnp.where(finite, state.last_skipped, state.step + 1),
            average=average,
        )
        return state, loss

    return train_step


def make_gradients(config: Config, network: Network) -> Callable[[TrainState, Batch], tuple[Any, nnx.State]]:
    """(state, global batch) -> (loss, (batch statistics, sums)), gradients; batches in `optim.accumulate` parts."""
    dtype, optim = param_dtype(config.model), config.optim

    def loss_fn(params: nnx.State, batch_stats: nnx.State, batch: Batch, key: jax.Array):
        """-> loss, (batch statistics, sums)."""
        params = jax.tree.map(
            lambda p, factor: p if factor else jax.lax.stop_gradient(p), params, rate_factors(optim, params)
        )
        model = nnx.merge(network.train, params, batch_stats)
        loss, sums = config.task.loss(model, batch, key, dtype)
        _, _, batch_stats = split(model)
        return loss, (batch_stats, sums)

    def gradients(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        batch = config.task.whole_batch(batch)
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

    return gradients


def cut(batch: Batch, parts: int, group: int) -> Batch:
    """(b, ...) -> (parts, b / parts, ...): part i has every `parts`-th group of rows, from the i-th on.

    So each device cuts its own rows, and the groups stay whole.
    """

    def cut_leaf(x: jax.Array) -> jax.Array:
        groups = x.reshape(-1, parts, group, *x.shape[1:])
        return groups.swapaxes(0, 1).reshape(parts, -1, *x.shape[1:])

    return jax.tree.map(cut_leaf, batch)


def add(sums: Sums, new: Sums) -> Sums:
    """The totals with those of one more batch, whatever its loss is computed in."""
    return {name: total + new[name].astype(total.dtype) for name, total in sums.items()}


def make_eval_step(
    task: Task, model: nnx.GraphDef, dtype: Any, candidates: Sequence[int] | None = None, *, each: bool = False
) -> Callable[[nnx.State, nnx.State, Batch, Sums], tuple[Sums, Any]]:
    """(parameters, batch statistics, batch, sums so far) -> (sums with this batch, what the scores need of it).

    With `each`, what the task says of each example: `Task.evaluate_each`.
    """
    evaluate = task.evaluate_each if each else task.evaluate

    def eval_step(params: nnx.State, batch_stats: nnx.State, batch: Batch, sums: Sums) -> tuple[Sums, Any]:
        new, outputs = evaluate(nnx.merge(model, params, batch_stats), batch, dtype, candidates)
        return add(sums, new), outputs

    return eval_step
