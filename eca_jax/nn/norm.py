"""Batch normalisation with a statistics group and PyTorch's running statistics."""

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.errors import EcaJaxError


class BatchNorm(nnx.Module):
    """Normalises every channel of (b, ..., c) by the mean and variance of its statistics group.

    A group is `group_size` consecutive examples of the global batch; None is the whole of it. ECA-Net was trained
    with groups of 64: a batch of 256 over 4 GPUs, each with statistics of its own. A group that lies inside one device
    needs no communication, and the result does not depend on the number of devices.

    As in PyTorch, `running = (1 - momentum) * running + momentum * batch` with the unbiased variance (n / (n - 1)), and
    the biased one normalises. With several groups the running statistics move by the average over the groups, which is
    the mean of what the GPUs would hold. Statistics are float32 or wider; the output has `dtype`.

    Differs from `flax.nnx.BatchNorm`, which has no groups and keeps the biased variance.
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
        stats_dtype = jnp.promote_types(x.dtype, self.mean[...].dtype)
        if self.use_running_average:
            y = self._normalise(x.astype(stats_dtype), self.mean[...], self.var[...])
            return y.astype(self.dtype)

        size = self.group_size or x.shape[0]
        if x.shape[0] % size:
            raise EcaJaxError(
                f"batch norm: a batch of {x.shape[0]} cannot be cut into statistics groups of {size}; "
                "choose a batch size that is a multiple of model.batch_norm_group"
            )
        grouped = x.reshape(-1, size, *x.shape[1:]).astype(stats_dtype)  # g n ... c
        axes = tuple(range(1, grouped.ndim - 1))
        mean = grouped.mean(axes)  # g c
        # One pass over x. The squares are float32, so this loses digits only where |mean| >> std.
        var = jnp.maximum(jnp.square(grouped).mean(axes) - jnp.square(mean), 0.0)
        expand = (slice(None), *(None for _ in axes))
        y = self._normalise(grouped, mean[expand], var[expand])

        n = grouped.size // (grouped.shape[0] * grouped.shape[-1])
        unbiased = var * (n / max(n - 1, 1))
        self._move(self.mean, mean.mean(0))
        self._move(self.var, unbiased.mean(0))
        return y.reshape(x.shape).astype(self.dtype)

    def _normalise(self, x, mean, var):
        multiplier = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return (x - mean) * multiplier + self.bias[...]

    def _move(self, running: nnx.BatchStat, batch: jax.Array) -> None:
        batch = jax.lax.stop_gradient(batch).astype(running[...].dtype)
        running[...] = (1 - self.momentum) * running[...] + self.momentum * batch
