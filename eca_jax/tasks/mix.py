"""Mixup and CutMix on the device: pure functions of a batch and a key.

Each example is mixed with its neighbour (rows 2i and 2i + 1; a batch is in random order). A pair is therefore on one
device: nothing is communicated, and the result does not depend on the number of devices. Every pair has its own share
and its own kind of mixing (timm's mode 'pair').
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from eca_jax.errors import EcaJaxError
from eca_jax.plain import TypedFields


@dataclasses.dataclass(frozen=True)
class MixConfig(TypedFields, at="mix"):
    """Mixup and CutMix, on the device: each pair of neighbours in a batch is mixed with its own share."""

    mixup_alpha: float = 0.0
    """The share of the other image is drawn from Beta(alpha, alpha) (Zhang et al. 2018); 0 is no Mixup."""
    cutmix_alpha: float = 0.0
    """The same for a box of the other image (Yun et al. 2019); with both, each pair takes one or the other."""

    def __post_init__(self):
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < math.inf:
                raise EcaJaxError(f"mix.{name}: expected 0 or more, got {getattr(self, name)}")


def mix(image: jax.Array, target: jax.Array, key: jax.Array, config: MixConfig) -> tuple[jax.Array, jax.Array]:
    """Images (b, h, w, c) and targets (b, classes), both floating, b even -> the same, mixed in pairs."""
    if not (config.mixup_alpha or config.cutmix_alpha):
        return image, target
    b, h, w, _ = image.shape
    keys = jax.random.split(key, 4)
    pairs = (b // 2,)
    kind = jax.random.bernoulli(keys[0], 0.5, pairs) if config.mixup_alpha else jnp.ones(pairs, bool)
    cutmix = kind & bool(config.cutmix_alpha)
    alpha = jnp.where(cutmix, config.cutmix_alpha, config.mixup_alpha)
    kept = jax.random.beta(keys[1], alpha, alpha).astype(image.dtype)
    box = boxes(jax.random.uniform(keys[2], (*pairs, 2)), kept, h, w)
    kept = jnp.where(cutmix, 1 - box.mean((1, 2), dtype=image.dtype), kept)
    weight = jnp.where(cutmix[:, None, None], 1 - box.astype(image.dtype), kept[:, None, None])
    return _blend(image, weight[..., None]), _blend(target, kept[:, None])


def boxes(centre: jax.Array, kept: jax.Array, h: int, w: int) -> jax.Array:
    """True inside one box for each pair: (p, h, w).

    The sides are sqrt(1 - kept) of the image's, the centre is uniform over its pixels, and a box is cut off at the
    border (Yun et al. 2019, equation 2). centre: (p, 2), uniform in [0, 1); kept: (p,).
    """

    def inside(side: int, centre: jax.Array) -> jax.Array:
        cut = jnp.floor(side * jnp.sqrt(1 - kept)).astype(jnp.int32)
        middle = jnp.floor(side * centre).astype(jnp.int32)
        position = jnp.arange(side)
        first, end = middle - cut // 2, middle + (cut + 1) // 2
        return (position >= first[:, None]) & (position < end[:, None])

    return inside(h, centre[:, 0])[:, :, None] & inside(w, centre[:, 1])[:, None, :]


def _blend(x: jax.Array, weight: jax.Array) -> jax.Array:
    """weight * x + (1 - weight) * neighbour; x: (b, ...), weight: (b / 2, ...) of the same rank."""
    pairs = x.reshape(-1, 2, *x.shape[1:])
    weight = weight[:, None].astype(x.dtype)
    return (weight * pairs + (1 - weight) * pairs[:, ::-1]).reshape(x.shape)
