"""Functions behind the layers of a network: they see what a layer returns, and may return something else in its place.

A layer is known by its name, its attributes in the network: 'layer1.0.attn'. Taps are put into a copy of a network; the
network itself stays as it is.
"""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx

from eca_jax.errors import EcaJaxError, nearest
from eca_jax.models.base import Backbone

Tap = Callable[[jax.Array], jax.Array]
"""What a layer returns, (b, ...) -> what is passed on in its place. The function itself passes on what it got."""
Path = tuple[Any, ...]
"""Attributes, and numbers in lists."""
Model = TypeVar("Model", bound=nnx.Module)


def expect_evaluation(model: nnx.Module) -> None:
    """Refuses what is no network, and a network in training mode.

    Raises:
      EcaJaxError: says which, and what to do.
    """
    if not isinstance(model, nnx.Module):
        raise EcaJaxError(f"model: expected a network, an nnx.Module, got {type(model).__name__}")
    modes = [(m, name) for _, m in nnx.iter_modules(model) for name in ("use_running_average", "deterministic")]
    if any(getattr(module, name, True) is False for module, name in modes):
        raise EcaJaxError(
            "model: it is in training mode, where what a layer makes of an image depends on the whole batch: "
            "call model.eval() first"
        )


def layer_paths(model: nnx.Module) -> dict[str, Path]:
    """The name of each layer -> the path of the module that returns what the layer does.

    A sequence of layers ('layer4', 'layer1.0.downsample') stands for the last of them.
    """
    ends = {".".join(map(str, path)): _end(model, path) for path, _ in nnx.iter_modules(model) if path}
    return {name: path for name, path in ends.items() if path is not None}


def _end(model: nnx.Module, path: Path) -> Path | None:
    """The path of the last layer of a sequence; of no sequence its own, of an empty one None."""
    while isinstance(module := _at(model, path), nnx.Sequential | nnx.List):
        path, module = ((*path, "layers"), module.layers) if isinstance(module, nnx.Sequential) else (path, module)
        if not len(module):
            return None
        path = (*path, len(module) - 1)
    return path


def expect_layer(name: str, known: Iterable[str]) -> None:
    """Refuses a name that none of the `known` layers has.

    Raises:
      EcaJaxError: names the most similar ones.
    """
    if name not in (known := list(known)):
        raise EcaJaxError(f"model: it has no layer {name!r}.{nearest(name, known)}")


def named_layers(model: nnx.Module, names: str | Sequence[str]) -> dict[str, Path]:
    """The layers that are asked for, by names or shell patterns ('layer?.*.attn'), as `layer_paths` gives them.

    Raises:
      EcaJaxError: no layer has such a name or fits such a pattern; the most similar ones are named.
    """
    paths, found = layer_paths(model), {}
    for name in [names] if isinstance(names, str) else names:
        matching = {name} & paths.keys() or fnmatch.filter(paths, name)
        if not matching:
            expect_layer(name, paths)
        found |= {layer: paths[layer] for layer in matching}
    return found


def tapped(model: Model, taps: Mapping[Path, Tap]) -> Model:
    """A copy of a network in evaluation mode, with a function behind each of the layers at these paths.

    Of a layer that returns several arrays, the function gets the first. A layer behind which a function stands is
    computed by itself, and not in one operation with its neighbours (`eca_jax.nn.tail`): other layers then get the
    same numbers to a rounding.
    """
    return replaced(model, {path: lambda layer, tap=tap: _Tapped(layer, tap) for path, tap in taps.items()})


def replaced(model: Model, stand_ins: Mapping[Path, Callable[[Any], Any]]) -> Model:
    """A copy of a network in which other modules, made from those at these paths, stand in their places."""
    copy = nnx.clone(model)
    for _, module in nnx.iter_modules(copy):
        if isinstance(module, Backbone):
            module.rematerialise = False  # what is seen inside of a block could not get out
    for path in sorted(stand_ins, key=len, reverse=True):  # what is inside of others first
        _put(_at(copy, path[:-1]), path[-1], stand_ins[path](_at(copy, path)))
    return copy


def _at(model: Any, path: Path) -> Any:
    for key in path:
        model = model[key] if isinstance(key, int) else getattr(model, key)
    return model


def _put(parent: Any, key: str | int, module: Any) -> None:
    if isinstance(key, int):
        parent[key] = module
    else:
        setattr(parent, key, module)


class StandIn(nnx.Module):
    """Takes the place of a layer; what it has not got itself, the layer has."""

    def __init__(self, layer: Any, tap: Tap):
        self.layer = layer
        self.tap = nnx.static(tap)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("layer", "tap"):
            raise AttributeError(name)
        return getattr(self.layer, name)


class _Tapped(StandIn):
    def __call__(self, *args: Any, **options: Any) -> Any:
        leaves, tree = jax.tree.flatten(self.layer(*args, **options))
        return jax.tree.unflatten(tree, [self.tap(leaves[0]), *leaves[1:]])


class Notes(dict[str, jax.Array]):
    """What layers returned, by the layers' names, in the order of their calls."""

    def of(self, *names: str) -> Tap:
        """The tap that notes what a layer with these names returns.

        Raises:
          EcaJaxError: when the layer is called a second time.
        """

        def tap(x: jax.Array) -> jax.Array:
            if names[0] in self:
                raise EcaJaxError(f"model: its layer {names[0]!r} is called more than once, so it has no one output")
            self.update(dict.fromkeys(names, x))
            return x

        return tap

    def expect(self, *names: str) -> None:
        """Refuses layers that the network has not called.

        Raises:
          EcaJaxError: names them.
        """
        if missing := [name for name in names if name not in self]:
            raise EcaJaxError(
                f"model: it never calls {', '.join(missing)} as a function of one activation, so that has no output; "
                "expected another layer, such as the block around it"
            )
