"""Residual blocks in NumPy, in the dtype of their arrays: what tests hold the blocks against."""

from collections.abc import Callable

import numpy as np

from tests.nn.attention.checks import Arrays, normed


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def squeezed(x: np.ndarray) -> np.ndarray:
    """(b, h, w, c) -> (b, c)."""
    return x.mean((1, 2))


def conv(x: np.ndarray, kernel: np.ndarray, stride: int = 1) -> np.ndarray:
    """(b, h, w, c_in) with (k, k, c_in, c_out), padded by (k - 1) / 2 zeros on every side."""
    k, (height, width) = len(kernel), x.shape[1:3]
    pad = (k - 1) // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return sum(
        np.einsum("bhwi,io->bhwo", x[:, i : i + height : stride, j : j + width : stride], kernel[i, j])
        for i in range(k)
        for j in range(k)
    )


def branch(
    arrays: Arrays,
    x: np.ndarray,
    *,
    train: bool,
    stride: int = 1,
    before: Callable[[str, np.ndarray], np.ndarray] = lambda name, x: x,
) -> list[np.ndarray]:
    """The activations of a block's branch: after every batch norm, and ReLU except after the last.

    Args:
      arrays: by path in the block, 'conv1.kernel'.
      stride: of the block's first 3x3 convolution.
      before: (name of a convolution, its input) -> what it gets instead.
    """
    last = 3 if "conv3.kernel" in arrays else 2
    strided, activations = last - 1, []
    for i in range(1, last + 1):
        x = conv(before(f"conv{i}", x), arrays[f"conv{i}.kernel"], stride if i == strided else 1)
        x = normed(arrays, f"bn{i}", x, train=train)
        x = relu(x) if i < last else x
        activations.append(x)
    return activations


def shortcut(arrays: Arrays, x: np.ndarray, *, train: bool, stride: int = 1) -> np.ndarray:
    if "downsample.layers.0.kernel" not in arrays:
        return x
    return normed(arrays, "downsample.layers.1", conv(x, arrays["downsample.layers.0.kernel"], stride), train=train)


def below(arrays: Arrays, name: str) -> Arrays:
    """The arrays of one layer, by path in it."""
    return {path.removeprefix(f"{name}."): a for path, a in arrays.items() if path.startswith(f"{name}.")}
