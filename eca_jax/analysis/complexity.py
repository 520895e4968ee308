"""What a network costs: parameters, multiply-adds and activations, of every layer and in all.

They follow from shapes: the network is traced, nothing is computed, and no array is made.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from eca_jax.analysis.operations import operations
from eca_jax.convert.state_dict import ShapesOnly
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Architecture, Backbone
from eca_jax.models.registry import create_model
from eca_jax.nn.norm import BatchNorm

RULE = (
    "Multiply-adds are those of convolutions and matrix products; norms, activations and pooling are not counted. "
    "1 multiply-add = 2 FLOPs."
)
ACTIVATIONS = "Activations are the elements of the results of convolutions and matrix products, for one image."


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module that has parameters or work of its own, beside that of the modules in it."""

    path: str
    """Its attributes in the network, 'layer1.0.conv1'; '' is the network itself."""
    kind: str
    """Its class."""
    output: tuple[int, ...] | None
    """The shape of its result for one image, (h, w, c) or (c,); None if nothing called it. Of a norm or a gate that is
    computed from averages, the shape of the activation that it is for."""
    parameters: int
    multiply_adds: int
    activations: int


@dataclasses.dataclass(frozen=True)
class Complexity:
    """What a network costs for one image."""

    architecture: Architecture | None
    """What `create_model` made the network from; None if it was made otherwise."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    layers: tuple[Layer, ...]
    """In the order in which they are called."""

    @property
    def parameters(self) -> int:
        """The number of trainable parameters."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Of convolutions and matrix products."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def flops(self) -> int:
        """Two for each multiply-add."""
        return 2 * self.multiply_adds

    @property
    def activations(self) -> int:
        """Elements of the results of convolutions and matrix products."""
        return sum(layer.activations for layer in self.layers)


def complexity(model: Backbone | str, image_size: int | tuple[int, int] = 224) -> Complexity:
    """Parameters, multiply-adds and activations of a network for one image, from shapes alone.

    The rule is that of today's tools (PyTorch's `FlopCounterMode`; fvcore without its norms and pooling): counted are
    convolutions and matrix products, not their biases; norms, activations, pooling and the products of gates with
    activations are not. An activation is an element of a result that is counted (Radosavovic et al. 2020, section 3).
    What is counted is what the layers compute in training. In evaluation mode, it is less: the average behind a 1x1
    convolution comes from the average before it (docs/performance.md). Products of weights alone, which are the same
    for all images, are not counted.

    Args:
      model: a name (`list_models()`), or a network in any mode; also one without arrays, of `nnx.eval_shape`.
      image_size: pixels of a square image, or (height, width).

    Raises:
      EcaJaxError: what is given is no network or no size, the network does not take images of this size, or its work
        depends on values.

    Example:
      >>> from eca_jax.analysis import complexity
      >>> plain, eca = complexity("resnet50"), complexity("eca_resnet50")
      >>> plain.parameters, eca.parameters - plain.parameters
      (25557032, 80)
      >>> plain.multiply_adds, eca.multiply_adds - plain.multiply_adds
      (4089184256, 86272)
      >>> layer = next(layer for layer in eca.layers if layer.kind == "ECA")
      >>> layer.path, layer.output, layer.parameters
      ('layer1.0.attn', (56, 56, 256), 3)
    """
    size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise EcaJaxError(f"image_size: expected pixels, such as 224, or (height, width), got {image_size!r}")
    if isinstance(model, str):
        model = abstract_model(model)
    if not isinstance(model, Backbone):
        raise EcaJaxError(f"model: expected a name or a network of create_model, got {type(model).__name__}")
    calls, jaxpr = _traced(model, size)
    modules = _modules(model)
    work, parameters = _work(jaxpr, modules), _own_parameters(model, modules)
    layers = {
        path: Layer(path, type(module).__name__, calls.get(path), parameters[path], *work[path])
        for path, module in modules.items()
        if parameters[path] or any(work[path])
    }
    order = [path for path in calls if path in layers] + [path for path in layers if path not in calls]
    return Complexity(getattr(model, "architecture", None), size, tuple(layers[path] for path in order))


def abstract_model(name: str, **options: Any) -> Backbone:
    """`create_model(name, **options)` without arrays: its parameters have shapes and types alone."""
    return nnx.eval_shape(lambda: create_model(name, rngs=ShapesOnly(), **options))


def _modules(model: Backbone) -> dict[str, Any]:
    """Path -> module, each module once; the path of the network itself is ''."""
    return {".".join(map(str, path)): module for path, module in nnx.iter_modules(model)}


def _work(jaxpr: core.Jaxpr, paths: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Path of a module -> its multiply-adds and activations for one image, those of the modules inside it left out."""
    moving = [False] * (len(jaxpr.invars) - 1) + [True]  # weights, then the images
    work: dict[str, tuple[int, int]] = {path: (0, 0) for path in paths}
    for operation in operations(jaxpr, moving):
        path = MODULE.findall(operation.scope)[-1]
        multiply_adds, activations = work[path]
        work[path] = multiply_adds + operation.multiply_adds, activations + operation.outputs
    return {path: (multiply_adds // IMAGES, outputs // IMAGES) for path, (multiply_adds, outputs) in work.items()}


def _own_parameters(model: Backbone, paths: Iterable[str]) -> dict[str, int]:
    """Path of a module -> its parameters that are in no module inside it."""
    count = dict.fromkeys(paths, 0)
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        names = [".".join(map(str, path[:n])) for n in range(len(path) - 1, -1, -1)]
        count[next(name for name in names if name in count)] += math.prod(leaf.shape)
    return count


def _traced(model: Backbone, size: tuple[int, int]) -> tuple[dict[str, tuple[int, ...] | None], core.Jaxpr]:
    """The shapes that the modules returned, by path, in the order of their calls; and the computation of `IMAGES`.

    Every operation stands in the scope of the module that called it.
    """
    graphdef, state = nnx.split(model)
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    images = jax.ShapeDtypeStruct((IMAGES, *size, model.in_channels), jnp.float32)
    calls: dict[str, tuple[int, ...] | None] = {}

    def forward(state: nnx.State, images: jax.Array) -> jax.Array:
        network = nnx.merge(graphdef, state)  # a copy, which ends with the trace
        network.eval()  # no random numbers
        for path, module in _modules(network).items():
            module.watch = nnx.static(_Watch(path, calls))
            if isinstance(module, BatchNorm):  # with batch statistics, `tail` takes no average before a convolution
                module.use_running_average, module.group_size = False, None
            object.__setattr__(module, "__class__", _watched(type(module)))
        return network(images)

    return calls, jax.make_jaxpr(forward)(state, images).jaxpr


IMAGES = 2
"""The batch that is traced: batch norms of averages have no statistics of one image."""
MODULE = re.compile(r"module#([^#]*)#")
"""The scope of a module, with its path."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Watch:
    """What a watched module knows of itself."""

    path: str
    calls: dict[str, tuple[int, ...] | None]
    """Path -> the shape of the result for one image, of all modules of the network that were called so far."""


def _shape(watch: _Watch, result: Any, *args: Any, **options: Any) -> tuple[int, ...] | None:
    return result.shape[1:] if isinstance(result, jax.Array) else None


def _gated_shape(watch: _Watch, result: jax.Array, *args: Any) -> tuple[int, ...]:
    shape, channels = _shape_before(watch), result.shape[-1]
    return shape if shape[-1:] == (channels,) else (channels,)


def _normalised_shape(watch: _Watch, result: Any, mean: jax.Array, *args: Any, pixels: int) -> tuple[int, ...]:
    shape, channels = _shape_before(watch), mean.shape[-1]
    return shape if math.prod(shape) == pixels * channels else (pixels, channels)


def _shape_before(watch: _Watch) -> tuple[int, ...]:
    """Of the result of the module that was called before this one; () if none was."""
    paths = list(watch.calls)
    place = paths.index(watch.path)
    return (watch.calls[paths[place - 1]] if place else None) or ()


WATCHED: dict[str, Callable[..., tuple[int, ...] | None]] = {
    "__call__": _shape,
    "convolve": _shape,
    "gate": _gated_shape,
    "batch_affine": _normalised_shape,
}
"""The methods by which networks call a module (`eca_jax.nn.tail` calls others than `__call__`) -> (watch, result,
arguments) -> the shape of its output."""


@functools.cache
def _watched(kind: type) -> type:
    """A subclass that notes its calls, and gives every operation of theirs the scope of the module."""
    methods = {
        name: _noted(method, WATCHED[name])
        for base in reversed(kind.__mro__)
        if base is not object
        for name, method in vars(base).items()
        if name in WATCHED
    }
    return type(kind.__name__, (kind,), methods)


def _noted(method: Callable, shape: Callable[..., tuple[int, ...] | None]) -> Callable:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        watch = self.watch
        watch.calls.setdefault(watch.path, None)
        with jax.named_scope(f"module#{watch.path}#"):
            result = method(self, *args, **options)
        watch.calls[watch.path] = shape(watch, result, *args, **options)
        return result

    return call
