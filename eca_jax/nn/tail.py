"""The end of a residual branch: projection, batch norm, attention, shortcut, activation.

An attention that needs only the average of its input (a `ChannelGate`) is computed here without a pass over the
activation of its own; docs/performance.md derives how, and what it saves. Any other attention is called as it stands.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.nn.attention import ChannelGate
from eca_jax.nn.layers import Conv
from eca_jax.nn.norm import BatchNorm, moments, widened


def conv_norm(x: jax.Array, conv: Conv, norm: BatchNorm) -> jax.Array:
    """norm(conv(x)): (b, h, w, c_in) -> (b, h, w, c).

    With running statistics the norm's scale goes into the kernel, so what follows the convolution is a bias alone:
    XLA:GPU then gives bias, shortcut and ReLU to cuDNN's convolution instead of a pass over the activation each.
    """
    if not norm.use_running_average:
        return norm(conv(x))
    kernel, bias = folded(conv, norm)
    return conv.convolve(x, kernel) + bias.astype(norm.dtype)


def in_turn(x: jax.Array, *layers: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The layers one after another, a convolution and the norm behind it as one."""
    rest = list(layers)
    while rest:
        layer = rest.pop(0)
        if isinstance(layer, Conv) and rest and isinstance(rest[0], BatchNorm):
            x = conv_norm(x, layer, rest.pop(0))
        else:
            x = layer(x)
    return x


def folded(conv: Conv, norm: BatchNorm) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias (c,) of the convolution that is norm(conv(x)) by the running statistics."""
    a, b = norm.running_affine()
    return conv.kernel[...] * a, b


def tail(
    h: jax.Array,
    conv: Conv,
    norm: BatchNorm,
    attention: nnx.Module,
    *,
    drop_path: nnx.Dropout,
    rngs: nnx.Rngs | None,
    shortcut: jax.Array | None,
    relu: bool,
) -> jax.Array:
    """relu(drop_path(attention(norm(conv(h)))) + shortcut), without relu and shortcut where there is none.

    Args:
      h: the inside of the branch, (b, h, w, c_in).
      conv: of stride 1 and one group, without bias.
      drop_path: leaves out whole examples.
      shortcut: (b, h, w, c).

    Returns:
      (b, h, w, c) in the norm's dtype.
    """
    if not isinstance(attention, ChannelGate):
        y = drop_path(attention(conv_norm(h, conv, norm)), rngs=rngs)
    elif norm.use_running_average:
        kernel, bias = folded(conv, norm)
        gate = attention.gate(projected_mean(h, kernel.astype(h.dtype)) + bias)
        y = conv_norm(h, conv, norm)
        y = (y * drop_path(gate[:, None, None], rngs=rngs)).astype(y.dtype)
    else:
        x = widened(conv(h), norm.mean[...].dtype)
        mean, square = moments(x)
        a, b = norm.batch_affine(mean, square, pixels=x.shape[1] * x.shape[2])
        gate = drop_path(attention.gate(a * mean + b)[:, None, None], rngs=rngs)
        scale, offset = a[:, None, None] * gate, b[:, None, None] * gate
        if relu and shortcut is not None:
            return affine_add_relu(x, scale, offset, shortcut)
        y = (x * scale + offset).astype(norm.dtype)
    y = y if shortcut is None else y + shortcut
    return nnx.relu(y) if relu else y


def projected_mean(h: jax.Array, kernel: jax.Array) -> jax.Array:
    """The average over its pixels, (b, c), of h convolved with the kernel, from sums over h alone.

    Averaging commutes with a 1x1 convolution. With a larger kernel and zero padding, each tap meets h without the rows
    and the columns at one border: the sum over all of h, less the two borders, and their corner again.

    Args:
      h: (b, h, w, c_in).
      kernel: (k, k, c_in, c) with k odd, slid with stride 1 over h with k // 2 zeros around it.
    """
    wide, taps = widened(h), kernel.shape[0]
    met = []
    for i, j in itertools.product(range(taps), repeat=2):
        rows, columns = _missed(i - taps // 2, h.shape[1]), _missed(j - taps // 2, h.shape[2])
        met.append(_sum(wide) - _sum(wide, rows) - _sum(wide, None, columns) + _sum(wide, rows, columns))
    total = jnp.matmul(jnp.concatenate(met, -1), widened(kernel).reshape(-1, kernel.shape[-1]), precision="highest")
    return total / (h.shape[1] * h.shape[2])


Span = tuple[int, int]
"""First entry and the one after the last."""


def _missed(ahead: int, n: int) -> Span:
    """Of n entries, those that a tap never meets that looks so far ahead of the centre: the first so many."""
    return (0, min(ahead, n)) if ahead > 0 else (max(n + ahead, 0), n)


def _sum(x: jax.Array, *spans: Span | None) -> jax.Array | float:
    """(b, h, w, c) -> (b, c): over the pixels in a span of rows and one of columns, None being all."""
    for axis, span in enumerate(spans, start=1):
        if span is not None and span[0] == span[1]:
            return 0.0
        x = x if span is None else jax.lax.slice_in_dim(x, *span, axis=axis)
    return x.sum((1, 2))


@jax.custom_vjp
def affine_add_relu(x: jax.Array, scale: jax.Array, offset: jax.Array, shortcut: jax.Array) -> jax.Array:
    """relu(x * scale + offset + shortcut) in the shortcut's dtype.

    Args:
      x: (b, h, w, c), float32 or wider: a wider view of what the projection returned in the shortcut's dtype.
      scale, offset: (b, 1, 1, c).
      shortcut: (b, h, w, c).
    """
    return jax.nn.relu((x * scale + offset).astype(shortcut.dtype) + shortcut)


def _affine_add_relu_forward(x, scale, offset, shortcut):
    out = affine_add_relu(x, scale, offset, shortcut)
    return out, (x.astype(shortcut.dtype), scale, out)


def _affine_add_relu_backward(residuals, gradient):
    x, scale, out = residuals
    d = jnp.where(out > 0, gradient, 0)
    wide = d.astype(scale.dtype)
    s1 = wide.sum((1, 2), keepdims=True)
    s2 = (wide * x).sum((1, 2), keepdims=True)
    return wide * scale, s2, s1, d


affine_add_relu.defvjp(_affine_add_relu_forward, _affine_add_relu_backward)
