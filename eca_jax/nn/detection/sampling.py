"""Sampling: which anchors, or proposed regions, a training step learns from."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def sample(key: jax.Array, labels: ArrayLike, number: int, positive_fraction: float) -> tuple[jax.Array, jax.Array]:
    """Which positives and which negatives are chosen: two masks, (n,) bool each.

    At most `number * positive_fraction` positives are, rounded down, and negatives fill up to `number`, as far as there
    are any. Every choice of as many is equally probable, and the same key makes the same one.

    Args:
      key: of `jax.random`.
      labels: (n,) int; positives have a label of 1 or more, negatives 0, and what is below 0 is never chosen.
      number: how many are chosen in all.
      positive_fraction: of 1.
    """
    labels = jnp.asarray(labels)
    order = (jax.random.bits(key, labels.shape, jnp.uint32) >> 1).astype(jnp.int32)
    most = int(number * positive_fraction)
    positives = _highest(jnp.where(labels >= 1, order, -1), most, most)
    negatives = _highest(jnp.where(labels == 0, order, -1), number, number - positives.sum())
    return positives, negatives


def _highest(order: jax.Array, most: int, count: ArrayLike) -> jax.Array:
    """Where the `count` highest of `order` (n,) are, (n,) bool; negative ones are not counted, nor more than `most`."""
    values, places = jax.lax.top_k(order, min(most, len(order)))
    chosen = (values >= 0) & (jnp.arange(len(values)) < count)
    return jnp.zeros(len(order), bool).at[places].set(chosen)
