"""How the arrays of each kind of layer are named and laid out in PyTorch, and the walk over a model that applies it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from flax import nnx

from eca_jax.models.base import Backbone
from eca_jax.models.detection.roi_heads import BOX_SIDE, MapLinear
from eca_jax.nn.attention import CBAM, ECA, ECA_NS, ESE, GC, SE, CoordinateAttention
from eca_jax.nn.layers import BiasedConv, Conv, DoublingConv
from eca_jax.nn.norm import BatchNorm, FixedBatchNorm


@dataclasses.dataclass(frozen=True)
class Layout:
    """Two functions of arrays, each the other's inverse; both give views or copies without changing a value."""

    to_torch: Callable[[np.ndarray], np.ndarray]
    from_torch: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda a: a, lambda a: a)
CONV = Layout(lambda a: a.transpose(3, 2, 0, 1), lambda a: a.transpose(2, 3, 1, 0))  # h w i o <-> o i h w
DENSE = Layout(np.transpose, np.transpose)  # i o <-> o i
TRANSPOSED_CONV = Layout(lambda a: a.transpose(2, 3, 0, 1), lambda a: a.transpose(2, 3, 0, 1))  # h w i o <-> i o h w
DENSE_AS_CONV = Layout(lambda a: a.T[:, :, None, None], lambda a: a[:, :, 0, 0].T)  # i o <-> o i 1 1
CONV1D = Layout(lambda a: a[None, None, :], lambda a: a[0, 0, :])  # k <-> 1 1 k
CONV1D_DEPTHWISE = Layout(lambda a: a.T[:, None, :], lambda a: a[:, 0, :].T)  # k c <-> c 1 k


def _dense_of_map(side: int) -> Layout:
    """A dense layer of the values of a map: (h w c) o <-> o (c h w)."""

    def to_torch(a: np.ndarray) -> np.ndarray:
        return a.reshape(side, side, -1, a.shape[1]).transpose(3, 2, 0, 1).reshape(a.shape[1], -1)

    def from_torch(a: np.ndarray) -> np.ndarray:
        return a.reshape(a.shape[0], -1, side, side).transpose(2, 3, 1, 0).reshape(-1, a.shape[0])

    return Layout(to_torch, from_torch)


Rules = dict[str, tuple[str, Layout]]
"""Our array -> (PyTorch's name of it, layout)."""
NORM: Rules = {
    "scale": ("weight", SAME),
    "bias": ("bias", SAME),
    "mean": ("running_mean", SAME),
    "var": ("running_var", SAME),
}


def _pointwise(ours: str, theirs: str) -> Rules:
    """A dense layer that is a 1x1 convolution there."""
    return {f"{ours}.kernel": (f"{theirs}.weight", DENSE_AS_CONV), f"{ours}.bias": (f"{theirs}.bias", SAME)}


def _norm(ours: str, theirs: str) -> Rules:
    """A batch norm; a layer norm has its first two arrays."""
    return {f"{ours}.{our}": (f"{theirs}.{their}", layout) for our, (their, layout) in NORM.items()}


RULES: dict[type, Rules] = {
    Conv: {"kernel": ("weight", CONV)},
    BiasedConv: {"kernel": ("weight", CONV), "bias": ("bias", SAME)},
    DoublingConv: {"kernel": ("weight", TRANSPOSED_CONV), "bias": ("bias", SAME)},
    nnx.Linear: {"kernel": ("weight", DENSE), "bias": ("bias", SAME)},
    MapLinear: {"kernel": ("weight", _dense_of_map(BOX_SIDE)), "bias": ("bias", SAME)},
    BatchNorm: NORM,
    FixedBatchNorm: NORM,
    ECA: {"kernel": ("conv.weight", CONV1D)},
    ECA_NS: {"kernel": ("conv.weight", CONV1D_DEPTHWISE)},
    SE: _pointwise("fc1", "fc1") | _pointwise("fc2", "fc2"),
    ESE: _pointwise("fc", "fc"),
    CBAM: {
        **_pointwise("fc1", "channel.fc1"),
        **_pointwise("fc2", "channel.fc2"),
        "spatial.conv.kernel": ("spatial.conv.conv.weight", CONV),
        **_norm("spatial.bn", "spatial.conv.bn"),
    },
    GC: {
        **_pointwise("mask", "conv_attn"),
        **_pointwise("fc1", "mlp_add.fc1"),
        **_norm("norm", "mlp_add.norm"),
        **_pointwise("fc2", "mlp_add.fc2"),
    },
    CoordinateAttention: {
        **_pointwise("fc1", "conv1"),
        **_norm("norm", "bn1"),
        **_pointwise("fc_h", "conv_h"),
        **_pointwise("fc_w", "conv_w"),
    },
}
"""Layer -> our array -> (PyTorch's name of it, layout)."""
COUNTER = "num_batches_tracked"
"""An array of PyTorch's batch norm without a counterpart here: ignored when it is read, written as 0."""


BROUGHT: dict[type, frozenset[str]] = {}
"""The layers of plugins -> the sources whose networks have them."""


def register_layout(
    layer: type[nnx.Module], arrays: Mapping[str, tuple[str, Layout]], *, sources: Sequence[str]
) -> None:
    """Says how a layer of a plugin is written in PyTorch.

    Args:
      layer: the class of the layer.
      arrays: our array ('kernel', or 'fc1.kernel' for one of a layer inside) -> (PyTorch's name of it, layout).
      sources: the sources whose networks have such a layer: 'ecanet', 'timm'. Models with the layer can then be written
        for them. There, the layer has the source's name of an attention: `eca`, `se`.
    """
    RULES[layer] = dict(arrays)
    BROUGHT[layer] = frozenset(sources)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a model, and where it goes in PyTorch."""

    module: str
    """Path of the layer in our model: 'layer1.0.conv1'."""
    name: str
    """Our name of the array in it: 'kernel'."""
    layer: type
    """The layer's class."""
    torch_name: str | None
    """PyTorch's name of the array in its layer: 'weight'; None if there is no rule for it."""
    layout: Layout | None
    variable: nnx.Variable

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}" if self.module else self.name

    @property
    def trainable(self) -> bool:
        return isinstance(self.variable, nnx.Param)


def leaves(model: Backbone) -> Iterator[Leaf]:
    """All arrays of a model, concrete or abstract; in the order of definition until NNX splits the model."""
    for path, layer in _layers(model):
        rules, variables = RULES.get(type(layer), {}), dict(_variables(layer))
        for name in [*(name for name in rules if name in variables), *(n for n in variables if n not in rules)]:
            yield Leaf(path, name, type(layer), *rules.get(name, (None, None)), variables[name])


def _layers(node, path: tuple[str, ...] = ()) -> Iterator[tuple[str, nnx.Module]]:
    """The layers that have a rule, and those without a rule that have arrays of their own."""
    children = dict(_children(node))
    if type(node) in RULES or any(isinstance(child, nnx.Variable) for child in children.values()):
        yield ".".join(path), node
    if type(node) not in RULES:
        for name, child in children.items():
            if not isinstance(child, nnx.Variable):
                yield from _layers(child, (*path, name))


def _variables(layer) -> Iterator[tuple[str, nnx.Variable]]:
    """The arrays of a layer by name; if it has a rule, also those of the layers inside ('fc1.kernel')."""
    for name, child in _children(layer):
        if isinstance(child, nnx.Variable):
            yield name, child
        elif type(layer) in RULES:
            yield from ((f"{name}.{inner}", variable) for inner, variable in _variables_below(child))


def _variables_below(node) -> Iterator[tuple[str, nnx.Variable]]:
    for name, child in _children(node):
        if isinstance(child, nnx.Variable):
            yield name, child
        else:
            yield from ((f"{name}.{inner}", variable) for inner, variable in _variables_below(child))


def _children(node) -> Iterator[tuple[str, nnx.Variable | nnx.Module | nnx.List]]:
    """The arrays, modules and lists directly in a module or a list."""
    for name, child in enumerate(node) if isinstance(node, nnx.List) else vars(node).items():
        if isinstance(child, nnx.Variable | nnx.Module | nnx.List) and not isinstance(child, nnx.RngState):
            yield str(name), child
