"""What the layers of a network return for given images, by the layers' names; and functions of many images."""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eca_jax.analysis.taps import Notes, Path, expect_evaluation, named_layers, tapped
from eca_jax.errors import EcaJaxError, expect_at_least


def activations(model: nnx.Module, images: jax.Array, names: str | Sequence[str]) -> dict[str, jax.Array]:
    """What layers of a network return for every image.

    Layers are computed one by one here: what follows a batch norm, for instance, is the norm's output before the ReLU,
    as in PyTorch's hooks. The function is compiled once for each model, names and shape of batch.

    Args:
      model: any network in evaluation mode that maps images: of `create_model`, or an `nnx.Module` of your own.
      images: normalised, (b, h, w, c).
      names: of modules in the network, 'layer1.0.attn' or 'conv1', or shell patterns of them, 'layer?.*.bn2', whose *
        also stands for dots. A sequence of layers ('layer4') stands for the last of them. What a pattern fits and the
        network does not call is left out.

    Returns:
      Name -> (b, h, w, c) or (b, c), in the layer's dtype, in the order of the calls. Of a layer that returns several
      arrays, the first.

    Raises:
      EcaJaxError: the model is none, or in training mode; no layer has a name, and the most similar ones are named; or
        a layer that is named is not called by the network, or more than once.

    Example:
      >>> import eca_jax
      >>> import jax.numpy as jnp
      >>> from eca_jax.analysis import activations
      >>> from flax import nnx
      >>> model = eca_jax.create_model("eca_resnet18", width_multiplier=0.125, rngs=nnx.Rngs(0))
      >>> model.eval()
      >>> found = activations(model, jnp.zeros((2, 64, 64, 3)), ("conv1", "layer4.*.attn"))
      >>> {name: array.shape for name, array in found.items()}
      {'conv1': (2, 32, 32, 8), 'layer4.0.attn': (2, 2, 2, 64), 'layer4.1.attn': (2, 2, 2, 64)}
    """
    expect_evaluation(model)
    names = (names,) if isinstance(names, str) else tuple(names)
    paths = named_layers(model, names)
    exact = tuple(name for name in names if name in paths)
    return dict(_activations(*nnx.split(model), jnp.asarray(images), tuple(paths.items()), exact))


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _activations(
    graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array, layers: tuple[tuple[str, Path], ...], exact: tuple
) -> collections.OrderedDict:
    """What the `layers` return, as far as they are called, which the `exact` have to be. JAX sorts a plain dict."""
    notes, names = Notes(), collections.defaultdict(list)
    for name, path in layers:
        names[path].append(name)
    tapped(nnx.merge(graphdef, state), {path: notes.of(*of) for path, of in names.items()})(images)
    notes.expect(*exact)
    return collections.OrderedDict(notes)


def in_batches(function: Callable[[jax.Array], Any], images: Sequence[Any], *, batch_size: int = 64) -> Any:
    """A function of a batch, or a network, on more images than fit at once: the logits of a whole data set, say.

    Args:
      function: maps (b, h, w, c) to an array or a tree of arrays of b rows. It always gets batches of one size, the
        last filled up with zeros, so it is compiled once. A network, an `nnx.Module`, is compiled here.
      images: normalised, (n, h, w, c); or what has a length and gives such arrays for slices.
      batch_size: images at once; fewer where there are not as many.

    Returns:
      The same tree, of NumPy arrays of n rows in the order of the images.

    Raises:
      EcaJaxError: there is no image, the batch size is not positive, or what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from eca_jax.analysis import in_batches
      >>> in_batches(lambda images: jnp.mean(images, axis=(1, 2)), np.ones((100, 8, 8, 3))).shape
      (100, 3)
    """
    expect_at_least("batch_size", batch_size)
    if not len(images):
        raise EcaJaxError("images: expected at least one, got none")
    if isinstance(function, nnx.Module):
        graphdef, state = nnx.split(function)
        function = functools.partial(_outputs, graphdef, state)
    size, parts, order = min(batch_size, len(images)), [], ()
    for start in range(0, len(images), size):
        part = np.asarray(images[start : start + size])
        padding = [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1)
        rows = function(jnp.asarray(np.pad(part, padding)))
        order = tuple(rows) if isinstance(rows, dict) else ()  # JAX sorts the names
        parts.append(jax.device_get(rows))
    whole = jax.tree.map(lambda *rows: np.concatenate(rows)[: len(images)], *parts)
    return {name: whole[name] for name in order} if isinstance(whole, dict) else whole


@functools.partial(jax.jit, static_argnums=0)
def _outputs(graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array) -> Any:
    return nnx.merge(graphdef, state)(images)
