"""The losses of detection, each a sum over the entries of a mask; what it is divided by, the caller knows.

What is masked may be anything, NaN too: it changes neither a value nor a gradient. Sums are float32 or wider.
"""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from eca_jax.nn.norm import widened


def l1(predictions: ArrayLike, targets: ArrayLike, mask: ArrayLike) -> jax.Array:
    """The sum of |predictions - targets| over coded boxes, (..., 4) each, where mask (...,) is true: a scalar."""
    apart = _differences(predictions, targets, mask)
    return (apart * jnp.sign(apart)).sum()  # the gradient of `abs` at 0 is 1 in JAX; it is 0 in PyTorch and here


def smooth_l1(predictions: ArrayLike, targets: ArrayLike, mask: ArrayLike, *, beta: float) -> jax.Array:
    """As `l1`, but d = |predictions - targets| counts as d^2 / (2 beta) below `beta` > 0, and as d - beta / 2 above:
    a scalar. It is Huber's loss divided by `beta`.

    Args:
      predictions, targets: coded boxes, (..., 4) each.
      mask: (...,) bool, which boxes count.
      beta: where the square ends and the straight line begins.
    """
    return optax.huber_loss(_differences(predictions, targets, mask), delta=beta).sum() / beta


def binary_cross_entropy(logits: ArrayLike, targets: ArrayLike, mask: ArrayLike) -> jax.Array:
    """The sum of the cross entropies of sigmoid(logits) and `targets` where the mask is true: a scalar.

    Args:
      logits, targets: (...,) each; the targets are between 0 and 1.
      mask: bool, of a shape that broadcasts to theirs.
    """
    logits, targets = (_where(mask, x) for x in (logits, targets))
    return jnp.where(mask, optax.sigmoid_binary_cross_entropy(logits, targets), 0).sum()


def cross_entropy(logits: ArrayLike, labels: ArrayLike, mask: ArrayLike) -> jax.Array:
    """The sum of the cross entropies of softmax(logits) and the labels where the mask is true: a scalar.

    Args:
      logits: (..., classes).
      labels: (...,) int, the class that is right.
      mask: (...,) bool.
    """
    mask = jnp.asarray(mask)
    logits, labels = _where(mask[..., None], logits), jnp.where(mask, labels, 0)
    return jnp.where(mask, optax.softmax_cross_entropy_with_integer_labels(logits, labels), 0).sum()


def sigmoid_focal(
    logits: ArrayLike, targets: ArrayLike, mask: ArrayLike, *, alpha: float = 0.25, gamma: float = 2.0
) -> jax.Array:
    """The sum of the focal losses (https://arxiv.org/abs/1708.02002) of sigmoid(logits), a scalar.

    With p the probability that is given to the wrong answer, each is -p^gamma log(1 - p), times `alpha` where the
    target is true and times 1 - `alpha` elsewhere.

    Args:
      logits: (..., classes).
      targets: (..., classes) bool; optax's `sigmoid_focal_loss` also takes probabilities, and takes four times as long.
      mask: (...,) bool.
      alpha: the weight of the true ones, from 0 to 1.
      gamma: how little those count that are right already.
    """
    mask, targets = jnp.asarray(mask)[..., None], jnp.asarray(targets, bool)
    wrong = _where(mask, logits) * jnp.where(targets, -1, 1)
    weights = jnp.where(targets, alpha, 1 - alpha) * mask
    # Not sigmoid(wrong) ** gamma: for a small `gamma`, that has no finite derivative where the sigmoid is 0.
    return (weights * jnp.exp(gamma * jax.nn.log_sigmoid(wrong)) * jax.nn.softplus(wrong)).sum()


def _where(mask: ArrayLike, x: ArrayLike) -> jax.Array:
    """x where the mask is true and 0 elsewhere, so that no NaN comes back from there as a gradient."""
    return jnp.where(mask, widened(jnp.asarray(x)), 0)


def _differences(predictions: ArrayLike, targets: ArrayLike, mask: ArrayLike) -> jax.Array:
    """predictions - targets (..., 4), and 0 where the mask (...,) is false."""
    mask = jnp.asarray(mask)[..., None]
    return _where(mask, predictions) - _where(mask, targets)
