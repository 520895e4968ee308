"""A model to a PyTorch state dict and back: NumPy arrays by name, and nothing of PyTorch."""

import dataclasses
import fnmatch
import functools
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eca_jax.convert.counterparts import counterpart
from eca_jax.convert.infer import infer
from eca_jax.convert.leaves import BROUGHT, COUNTER, Layout, Leaf, leaves
from eca_jax.convert.tables import TABLES, rename
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Architecture, Backbone
from eca_jax.models.mobilenetv2 import MobileNetV2
from eca_jax.models.registry import INSIDE, MODELS, PAPER, create_model, model_row
from eca_jax.models.resnet import VARIANTS, Bottleneck

NATIVE = "eca_jax"
"""The source whose names and layouts are our own."""
SOURCES = (*TABLES, NATIVE)
Tensors = Mapping[str, np.ndarray]
T = TypeVar("T")
WRAPPED = ("module.", "_orig_mod.")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array: ours, and its name in the source."""

    leaf: Leaf
    name: str
    native: bool

    @property
    def _layout(self) -> Layout:
        assert self.leaf.layout is not None  # _check_expressible has looked
        return self.leaf.layout

    @property
    def shape(self) -> tuple[int, ...]:
        """In the source's layout."""
        shape = self.leaf.variable.shape
        # A view that spends no memory, whatever the shape says.
        return shape if self.native else self._layout.to_torch(np.broadcast_to(np.float32(0), shape)).shape

    def to_source(self, value: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(value if self.native else self._layout.to_torch(value))

    def from_source(self, value: np.ndarray) -> np.ndarray:
        return value if self.native else self._layout.from_torch(value)


def entries(model: Backbone, source: str) -> list[Entry]:
    """All arrays of a model with their names in a source, in the order of the source's state dict."""
    order = _definition_order(model.architecture)
    found = sorted(leaves(model), key=lambda leaf: order[leaf.path])
    if source == NATIVE:
        return [Entry(leaf, leaf.path, native=True) for leaf in found]
    for leaf in found:
        if leaf.layout is None:
            raise _no_layout(leaf, source)
    rows = TABLES[source][type(model)]
    return [Entry(leaf, f"{rename(leaf.module, rows)}.{leaf.torch_name}", native=False) for leaf in found]


class ShapesOnly(nnx.Rngs):
    """One key for all layers, for `nnx.eval_shape`, where counting keys takes most of the time in deep networks."""

    def __init__(self):
        super().__init__(0)

    def params(self) -> jax.Array:
        return jax.random.key(0)


@functools.cache
def _definition_order(architecture: Architecture) -> dict[str, int]:
    """Path -> place among the arrays as the classes define them, which is the order of PyTorch's state dicts."""
    paths = []

    def build() -> Backbone:
        model = build_architecture(architecture, ShapesOnly())
        paths.extend(leaf.path for leaf in leaves(model))
        return model

    nnx.eval_shape(build)
    return {path: i for i, path in enumerate(paths)}


def build_architecture(architecture: Architecture, rngs: nnx.Rngs, **settings) -> Backbone:
    """`create_model` of an architecture; `settings` are those that it does not hold."""
    fields = {field.name: getattr(architecture, field.name) for field in dataclasses.fields(architecture)}
    return create_model(**fields, rngs=rngs, **settings)


def to_state_dict(model: Backbone, source: str) -> dict[str, np.ndarray]:
    """The state dict that the source's class loads with `strict=True`, values bit for bit the model's.

    Args:
      model: any model of `create_model`.
      source: 'ecanet', 'torchvision' or 'timm'; or 'eca_jax', whose names and layouts are our own.

    Raises:
      EcaJaxError: the source has no class that computes what this model does.

    Example:
      >>> import eca_jax
      >>> from eca_jax.convert.state_dict import to_state_dict
      >>> from flax import nnx
      >>> model = eca_jax.create_model("eca_resnet18", width_multiplier=0.125, rngs=nnx.Rngs(0))
      >>> arrays = to_state_dict(model, "eca_jax")
      >>> arrays["layer1.0.attn.kernel"].shape
      (3,)
    """
    _check_expressible(model, source)
    tensors = {}
    for entry in entries(model, source):
        tensors[entry.name] = entry.to_source(np.asarray(entry.leaf.variable[...]))
        if _is_variance(entry.leaf) and source != NATIVE:
            tensors[entry.name.removesuffix("running_var") + COUNTER] = np.zeros((), np.int64)
    return tensors


def from_state_dict(
    tensors: Tensors,
    *,
    source: str | None = None,
    architecture: Architecture | None = None,
    name: str | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    output_stride: int | None = None,
    skip: Sequence[str] = (),
    rngs: nnx.Rngs | None = None,
    **settings,
) -> Backbone:
    """The model of a state dict, in evaluation mode; its arrays are those of the state dict bit for bit.

    Args:
      tensors: name -> array. The prefixes that PyTorch's wrappers put before all names are dropped.
      source, architecture: what they are of; None is inferred from names and shapes.
      name: the model that is expected; another one is refused.
      num_classes: of the new head, where `skip` leaves out the old one.
      in_channels: of the images; where they are not the weights', the first convolution is adapted (`with_channels`).
      output_stride: which weights can be used with, whatever they were trained with; None is the architecture's.
      skip: shell patterns of names in the state dict that keep their fresh initialisation: 'fc.*' for another head.
      rngs: for what is skipped.
      settings: `dtype`, `param_dtype`, `batch_norm_group`, ... of `create_model`.

    Raises:
      EcaJaxError: all that is missing, unexpected, of another shape, not finite, at once; all of it is skipped.
    """
    if isinstance(skip, str):
        raise EcaJaxError(f"skip: expected a tuple of patterns, got {skip!r}: write ({skip!r},)")
    tensors = {key: value for key, value in unwrapped(tensors).items() if not key.endswith(COUNTER)}
    if source is None or architecture is None:
        source, architecture = infer({key: value.shape for key, value in tensors.items()})
    if name is not None and not _same_model(name, architecture):
        raise EcaJaxError(f"the weights are of {architecture.name!r}, the model asked for is {name!r}")
    if num_classes is not None and num_classes != architecture.num_classes:
        if not skip:
            head = "classifier" if "mobilenet" in architecture.name else "fc"
            raise EcaJaxError(
                f"the weights have {architecture.num_classes} classes, the model asked for {num_classes}: "
                f"skip=('{head}.*',) (on the command line --skip '{head}.*') starts a new head"
            )
        architecture = dataclasses.replace(architecture, num_classes=num_classes)
    architecture = dataclasses.replace(
        architecture, name=name or architecture.name, output_stride=output_stride or architecture.output_stride
    )
    if in_channels not in (None, architecture.in_channels):
        tensors = with_channels(tensors, source, architecture, in_channels)
        architecture = dataclasses.replace(architecture, in_channels=in_channels)

    def build(rngs: nnx.Rngs) -> Backbone:
        return build_architecture(architecture, rngs, **settings)

    # Until all is checked nothing is made of the size that a file claims.
    model = nnx.eval_shape(lambda: build(ShapesOnly()))

    def skipped(key: str) -> bool:
        return any(fnmatch.fnmatchcase(key, pattern) for pattern in skip)

    wanted = {entry.name: entry for entry in entries(model, source) if not skipped(entry.name)}
    given = {key: value for key, value in tensors.items() if not skipped(key)}
    if tensors and not given:
        raise EcaJaxError(f"skip: {', '.join(skip)} leaves nothing of the weights; expected less, such as 'fc.*'")
    unused = [pattern for pattern in skip if not any(fnmatch.fnmatchcase(key, pattern) for key in tensors)]
    faults = {
        "patterns to skip that match nothing": unused,
        "missing": [key for key in wanted if key not in given],
        "unexpected": [key for key in given if key not in wanted],
        "of another shape": [
            f"{key} {given[key].shape} instead of {entry.shape}"
            for key, entry in wanted.items()
            if key in given and given[key].shape != entry.shape
        ],
    }
    if not any(faults.values()):
        faults["not floating-point numbers"] = [
            f"{key} ({given[key].dtype})" for key in wanted if not jnp.issubdtype(given[key].dtype, jnp.floating)
        ]
    if not any(faults.values()):
        with np.errstate(over="ignore"):  # of float64, answered with the rest
            faults["not finite"] = [
                key
                for key, entry in wanted.items()
                if not np.isfinite(given[key].astype(entry.leaf.variable.dtype)).all()
            ]
        faults["variances below 0"] = [
            key for key, entry in wanted.items() if _is_variance(entry.leaf) and (given[key] < 0).any()
        ]
    if any(faults.values()):
        listed = "; ".join(f"{what}: {_some(keys)}" for what, keys in faults.items() if keys)
        raise EcaJaxError(f"the state dict does not fit {architecture.name!r} as {source} has it: {listed}")
    if skip:
        model = build(rngs or nnx.Rngs(0))
        wanted = {entry.name: entry for entry in entries(model, source) if not skipped(entry.name)}
    for key, entry in wanted.items():
        value = entry.from_source(given[key])
        entry.leaf.variable.set_value(jnp.asarray(value, dtype=entry.leaf.variable.dtype))
    model.eval()
    return model


def with_channels(tensors: Tensors, source: str, architecture: Architecture, in_channels: int) -> Tensors:
    """The state dict with a first convolution for images of other channels than the architecture's.

    As timm's `adapt_input_conv`: for one channel its weights are summed over the channels that there were, so that a
    grey image gives what three equal channels gave. For n they are repeated in their order, cut to n, and scaled by
    the old number over n, which keeps the size of what comes out. What is missing or misshapen is left as it is, and so
    are arrays of one axis, such as those of a GCT on the images.
    """

    def inputs(channels: int) -> list[Entry]:
        changed = dataclasses.replace(architecture, in_channels=channels)
        return entries(nnx.eval_shape(lambda: build_architecture(changed, ShapesOnly())), source)

    adapted = dict(tensors)
    for before, after in zip(inputs(architecture.in_channels), inputs(in_channels), strict=True):
        value = tensors.get(before.name)
        changed = before.shape != after.shape and len(before.shape) > 1
        if changed and value is not None and value.shape == before.shape:
            (axis,) = (i for i, (a, b) in enumerate(zip(before.shape, after.shape, strict=True)) if a != b)
            adapted[before.name] = _adapted(value, axis, in_channels)
    return adapted


def _adapted(value: np.ndarray, axis: int, channels: int) -> np.ndarray:
    """In float32, of whatever type; the result has that type again."""
    wide = value.astype(np.float32)
    if channels == 1:
        wide = wide.sum(axis, keepdims=True)
    else:
        n = value.shape[axis]
        wide = np.take(wide, np.arange(channels) % n, axis) * np.float32(n / channels)
    return wide.astype(value.dtype)


def unwrapped(tensors: Mapping[str, T]) -> Mapping[str, T]:
    """Without what PyTorch's wrappers put before all names: `module.` (DataParallel), `_orig_mod.` (compile)."""
    for prefix in WRAPPED * 2:  # either may be around the other
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _is_variance(leaf: Leaf) -> bool:
    """Whether it is that of a batch norm, also of one inside an attention: a square root is taken of it."""
    return isinstance(leaf.variable, nnx.BatchStat) and leaf.path.endswith(".var")


def _some(keys: Sequence[str], n: int = 6) -> str:
    return ", ".join(keys[:n]) + (f" and {len(keys) - n} more" if len(keys) > n else "")


def _no_layout(leaf: Leaf, source: str) -> EcaJaxError:
    return EcaJaxError(
        f"{source}: nobody has said how the array {leaf.name!r} of the layer {leaf.layer.__name__} ({leaf.module}) is "
        "laid out in PyTorch: write safetensors with our own names instead, or let its plugin call register_layout "
        "(eca_jax/convert/leaves.py)"
    )


def _same_model(name: str, architecture: Architecture) -> bool:
    """Whether `name` builds this architecture: `resnet50` does with ECA as well, as an attention of its own."""
    if name not in MODELS:
        return True  # create_model answers with the nearest
    backbone, own = MODELS[name]
    return backbone == model_row(architecture.name)[0] and own.kind in ("none", architecture.attention.kind)


def _check_expressible(model: Backbone, source: str) -> None:
    if source == NATIVE:
        return
    if source not in TABLES:
        raise EcaJaxError(f"unknown source {source!r}; expected one of {', '.join(SOURCES)}")
    architecture = model.architecture
    brought = any(source in BROUGHT.get(leaf.layer, ()) for leaf in leaves(model))
    reason = None
    if type(model) not in TABLES[source] or MODELS[architecture.name][0] in INSIDE:
        reason = f"the backbone {architecture.name!r}"
    elif not brought and isinstance(lacking := counterpart(architecture, source), str):
        reason = lacking
    elif source != "timm" and MODELS[architecture.name][0] not in PAPER:
        reason = f"the stem and shortcuts of {architecture.name!r}"
    elif architecture.output_stride != 32 and not _dilates(architecture, source):
        reason = f"the output_stride {architecture.output_stride} in {architecture.name!r}"
    elif isinstance(model, MobileNetV2) and (
        architecture.small_stem or (source == "timm" and architecture.attention.kind != "none")
    ):
        reason = "such a MobileNetV2"
    if reason:
        raise EcaJaxError(f"{source} has no model with {reason}; write it as safetensors with our own names instead")


def _dilates(architecture: Architecture, source: str) -> bool:
    """Whether the source's class can have dilated stages: all of timm's, of torchvision's those with bottlenecks."""
    variant = VARIANTS.get(MODELS[architecture.name][0])
    bottlenecks = variant is not None and variant.block is Bottleneck
    return source == "timm" or (source == "torchvision" and bottlenecks)


def momentum_to_state_dict(model: Backbone, trace: nnx.State, source: str) -> dict[str, np.ndarray]:
    """SGD's momentum, a tree like the model's parameters, by the source's names and in its layouts."""
    return {
        entry.name: entry.to_source(np.asarray(entry.leaf.variable[...]))
        for entry in entries(_with_params(model, trace), source)
        if entry.leaf.trainable
    }


def momentum_from_state_dict(model: Backbone, buffers: Tensors, source: str) -> nnx.State:
    """The inverse: a tree like the model's parameters."""
    copy = nnx.clone(model)
    wanted = {entry.name: entry for entry in entries(copy, source) if entry.leaf.trainable}
    if set(wanted) != set(buffers) or any(wanted[key].shape != value.shape for key, value in buffers.items()):
        raise EcaJaxError("the optimiser's momentum does not fit the model: it is of other parameters")
    for key, entry in wanted.items():
        entry.leaf.variable.set_value(jnp.asarray(entry.from_source(buffers[key]), dtype=entry.leaf.variable.dtype))
    return nnx.as_pure(nnx.state(copy, nnx.Param))


def _with_params(model: Backbone, params: nnx.State) -> Backbone:
    graphdef, _, rest = nnx.split(model, nnx.Param, ...)
    return nnx.merge(graphdef, params, rest)


def parameter_order(model: Backbone, source: str) -> list[str]:
    """Names of the trainable arrays as PyTorch's optimiser counts them."""
    return [entry.name for entry in entries(model, source) if entry.leaf.trainable]
