"""How the arrays of each kind of layer are named and laid out in PyTorch, and the walk over a model that applies it."""

import dataclasses
import operator
from collections.abc import Callable, Iterator

import numpy as np
from flax import nnx

from eca_jax.models.base import Backbone
from eca_jax.nn.attention import ECA, ECA_NS, SE
from eca_jax.nn.layers import Conv
from eca_jax.nn.norm import BatchNorm


@dataclasses.dataclass(frozen=True)
class Layout:
    """Two functions of arrays, each the other's inverse; both give views or copies without changing a value."""

    to_torch: Callable[[np.ndarray], np.ndarray]
    from_torch: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda a: a, lambda a: a)
CONV = Layout(lambda a: a.transpose(3, 2, 0, 1), lambda a: a.transpose(2, 3, 1, 0))  # h w i o <-> o i h w
DENSE = Layout(np.transpose, np.transpose)  # i o <-> o i
DENSE_AS_CONV = Layout(lambda a: a.T[:, :, None, None], lambda a: a[:, :, 0, 0].T)  # i o <-> o i 1 1
CONV1D = Layout(lambda a: a[None, None, :], lambda a: a[0, 0, :])  # k <-> 1 1 k
CONV1D_DEPTHWISE = Layout(lambda a: a.T[:, None, :], lambda a: a[:, 0, :].T)  # k c <-> c 1 k

RULES: dict[type, dict[str, tuple[str, Layout]]] = {
    Conv: {"kernel": ("weight", CONV)},
    nnx.Linear: {"kernel": ("weight", DENSE), "bias": ("bias", SAME)},
    BatchNorm: {
        "scale": ("weight", SAME),
        "bias": ("bias", SAME),
        "mean": ("running_mean", SAME),
        "var": ("running_var", SAME),
    },
    ECA: {"kernel": ("conv.weight", CONV1D)},
    ECA_NS: {"kernel": ("conv.weight", CONV1D_DEPTHWISE)},
    SE: {
        "fc1.kernel": ("fc1.weight", DENSE_AS_CONV),
        "fc1.bias": ("fc1.bias", SAME),
        "fc2.kernel": ("fc2.weight", DENSE_AS_CONV),
        "fc2.bias": ("fc2.bias", SAME),
    },
}
"""Layer -> our array -> (PyTorch's name of it, layout)."""
COUNTER = "num_batches_tracked"
"""Of PyTorch's batch norm: has no counterpart here, is dropped on the way in and written as 0 on the way out."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a model, and where it goes in PyTorch."""

    module: str
    """Path of the layer in our model: 'layer1.0.conv1'."""
    name: str
    """Our name of the array in it: 'kernel'."""
    torch_name: str
    """PyTorch's name of the array in its layer: 'weight'."""
    layout: Layout
    variable: nnx.Variable

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def trainable(self) -> bool:
        return isinstance(self.variable, nnx.Param)


def leaves(model: Backbone) -> Iterator[Leaf]:
    """All arrays of a model, concrete or abstract; in the order of definition until NNX splits the model."""
    for path, layer in _layers(model):
        for name, (torch_name, layout) in RULES[type(layer)].items():
            try:
                variable = operator.attrgetter(name)(layer)
            except AttributeError:
                variable = None
            if isinstance(variable, nnx.Variable):
                yield Leaf(path, name, torch_name, layout, variable)


def _layers(node, path: tuple[str, ...] = ()) -> Iterator[tuple[str, nnx.Module]]:
    if type(node) in RULES:
        yield ".".join(path), node
        return
    children = enumerate(node) if isinstance(node, nnx.List) else vars(node).items()
    for name, child in children:
        if isinstance(child, nnx.Module | nnx.List):
            yield from _layers(child, (*path, str(name)))
