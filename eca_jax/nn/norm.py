"""Batch normalisation with statistics over groups of examples, and with PyTorch's running statistics."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.errors import EcaJaxError


def widened(x: jax.Array, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """x in `dtype`, or unchanged if its own type is wider; sums over pixels are computed in this type."""
    return x.astype(jnp.promote_types(x.dtype, dtype))


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(b, ..., c) -> mean and mean square of each channel of each example, (b, c) each, in one pass."""
    axes = tuple(range(1, x.ndim - 1))
    return x.mean(axes), jnp.square(x).mean(axes)


class BatchNorm(nnx.Module):
    """Normalises every channel of (b, ..., c) by the mean and variance of its statistics group.

    A group consists of `group_size` consecutive examples of the global batch; None makes the whole batch one group.
    ECA-Net was trained with groups of 64: a batch of 256 on 4 GPUs, each with its own statistics. A group that lies
    inside one device needs no communication, and the result does not depend on the number of devices.

    As in PyTorch, `running = (1 - momentum) * running + momentum * batch`. The running variance is unbiased
    (n / (n - 1)); the biased variance normalises. With several groups, the running statistics move by the average over
    the groups: they are the mean of what the GPUs would hold. Statistics are float32 or wider; the output has `dtype`.

    `flax.nnx.BatchNorm` differs: it has no groups, and its running variance is biased.

    Example:
      >>> import jax.numpy as jnp
      >>> from eca_jax.nn import BatchNorm
      >>> norm = BatchNorm(2, group_size=1)  # each image by itself
      >>> norm(jnp.array([[[0.0, 0.0], [2.0, 4.0]]])).round(3)  # (b, pixels, c)
      Array([[[-1., -1.],
              [ 1.,  1.]]], dtype=float32)
    """

    def __init__(
        self,
        channels: int,
        *,
        group_size: int | None = None,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
    ):
        self.scale = nnx.Param(jnp.ones(channels, param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros(channels, param_dtype))
        self.var = nnx.BatchStat(jnp.ones(channels, param_dtype))
        self.group_size = group_size
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.use_running_average = False  # set by nnx.Module.train() and .eval()

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = widened(x, self.mean[...].dtype)
        if self.use_running_average:
            a, b = self.running_affine()
        else:
            a, b = self.batch_affine(*moments(wide), pixels=math.prod(x.shape[1:-1]))
            a, b = (jnp.expand_dims(t, range(1, x.ndim - 1)) for t in (a, b))
        return (wide * a + b).astype(self.dtype)

    def running_affine(self) -> tuple[jax.Array, jax.Array]:
        """(a, b), (c,) each, so that a * x + b is x normalised by the running statistics."""
        return self._affine(self.mean[...], self.var[...])

    def batch_affine(self, mean: jax.Array, square: jax.Array, *, pixels: int) -> tuple[jax.Array, jax.Array]:
        """(a, b) for every example, (b, c) each, from its `moments`; also updates the running statistics."""
        a, b = self._affine(*self._batch_statistics(mean, square, pixels=pixels))
        size = len(mean) // len(a)
        return jnp.repeat(a, size, axis=0), jnp.repeat(b, size, axis=0)

    def _batch_statistics(self, mean: jax.Array, square: jax.Array, *, pixels: int) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of every statistics group, (groups, c) each; also updates the running statistics.

        Args:
          mean, square: the `moments` of every example, (b, c) each.
          pixels: the number of values in each of these means.
        """
        batch = len(mean)
        if not batch:
            raise EcaJaxError("batch norm: an empty batch has no statistics; leave it out of the training")
        size = self.group_size or batch
        if batch % size:
            raise EcaJaxError(
                f"batch norm: a batch of {batch} cannot be cut into statistics groups of {size}; "
                "choose a batch size that is a multiple of model.batch_norm_group"
            )
        mean, square = (t.reshape(-1, size, t.shape[-1]).mean(1) for t in (mean, square))
        # The squares are float32, so this loses digits only where |mean| >> std.
        var = jnp.maximum(square - jnp.square(mean), 0.0)
        n = size * pixels
        self._move(self.mean, mean.mean(0))
        self._move(self.var, var.mean(0) * (n / (n - (n > 1))))  # without a branch: nnx.tabulate traces `pixels`
        return mean, var

    def _affine(self, mean: jax.Array, var: jax.Array) -> tuple[jax.Array, jax.Array]:
        a = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return a, self.bias[...] - a * mean

    def _move(self, running: nnx.BatchStat, batch: jax.Array) -> None:
        batch = jax.lax.stop_gradient(batch).astype(running[...].dtype)
        # Not `running[...] = …`: for that, JAX prepares an error message from everything that was traced so far.
        running.set_value((1 - self.momentum) * running[...] + self.momentum * batch)


class FixedBatchNorm(BatchNorm):
    """A `BatchNorm` that always normalises by its running statistics, also in training: those never change.

    Detectors are trained on a few large images at a time, of which no statistics could be had. What they keep are the
    statistics of the classifier they started from.
    """

    @property
    def use_running_average(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return True

    @use_running_average.setter
    def use_running_average(self, value: bool) -> None:
        """`nnx.Module.train()` sets it, to no effect."""
