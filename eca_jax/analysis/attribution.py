"""Which pixels a network's answer depends on: saliency, integrated gradients and Grad-CAM.

All three differentiate logits, those before the softmax, in evaluation mode, where no image depends on another: one
gradient of the sum over a batch has the gradient of each image.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eca_jax.analysis.taps import Notes, Path, expect_evaluation, named_layers, tapped
from eca_jax.errors import EcaJaxError, expect_at_least

Classes = int | np.ndarray | jax.Array | None
"""One class for all images, the class of each, (b), or None: the one with the highest logit of each."""


def saliency(model: nnx.Module, images: jax.Array, classes: Classes = None) -> jax.Array:
    """The gradient of a class's logit with respect to the pixels (Simonyan et al. 2013, arXiv 1312.6034).

    The paper shows its absolute value, of channels the largest: `abs(gradient).max(axis=-1)`.

    Args:
      model: any network in evaluation mode that maps images to logits.
      images: normalised, (b, h, w, c), floats.
      classes: one number for all images, the number of each (b), or None for the class that the network gives each.

    Returns:
      (b, h, w, c) in the type of the images: what the logit gains for one unit of a normalised pixel.

    Raises:
      EcaJaxError: the model is none or in training mode, or there is no such class.

    Example:
      >>> import eca_jax
      >>> import jax.numpy as jnp
      >>> from eca_jax.analysis import saliency
      >>> from flax import nnx
      >>> model = eca_jax.create_model("eca_resnet18", width_multiplier=0.125, rngs=nnx.Rngs(0))
      >>> model.eval()
      >>> gradient = saliency(model, jnp.zeros((2, 64, 64, 3)), classes=7)
      >>> gradient.shape, abs(gradient).max(axis=-1).shape
      ((2, 64, 64, 3), (2, 64, 64))
    """
    network = _opened(model)
    classes = _numbers(network, images, classes)
    return _gradients(*network, jnp.asarray(images), classes)


def integrated_gradients(
    model: nnx.Module,
    images: jax.Array,
    classes: Classes = None,
    *,
    baseline: Any = 0.0,
    steps: int = 64,
) -> jax.Array:
    """The share of every pixel in what a class's logit has gained since the baseline (Sundararajan et al. 2017).

    That is (image - baseline) times the gradient's average on the straight line from the one to the other (arXiv
    1703.01365, section 3), by the midpoint rule. The sum over an image is logit(image) - logit(baseline), up to the
    error of the rule, which says whether there are enough steps.

    Args:
      model, images, classes: as of `saliency`.
      baseline: an image that says nothing, of a shape that broadcasts to that of the images. 0 is, for normalised
        images, the mean colour; `eca_jax.data.preprocess.normalise` makes a black one.
      steps: points on the line; the network is differentiated at each.

    Returns:
      (b, h, w, c) in the type of the images, in units of logits.

    Raises:
      EcaJaxError: as `saliency`; or `steps` is not positive, or the baseline has another shape.

    Example:
      >>> import eca_jax
      >>> import jax
      >>> from eca_jax.analysis import integrated_gradients
      >>> from flax import nnx
      >>> model = eca_jax.create_model("eca_resnet18", width_multiplier=0.125, rngs=nnx.Rngs(0))
      >>> model.eval()
      >>> images = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
      >>> shares = integrated_gradients(model, images, classes=7, steps=16)
      >>> gained = model(images)[0, 7] - model(0 * images)[0, 7]
      >>> shares.shape, bool(abs(shares.sum() - gained) < 0.05 * abs(gained))
      ((1, 64, 64, 3), True)
    """
    expect_at_least("steps", steps)
    network, images = _opened(model), jnp.asarray(images)
    baseline = jnp.asarray(baseline, images.dtype)
    sides = zip(baseline.shape[::-1], images.shape[::-1], strict=False)
    if baseline.ndim > images.ndim or any(side not in (1, wanted) for side, wanted in sides):
        raise EcaJaxError(f"baseline: expected a shape like {images.shape[1:]}, got {baseline.shape}")
    return _integrated(*network, images, _numbers(network, images, classes), baseline, steps)


def grad_cam(model: nnx.Module, images: jax.Array, layer: str, classes: Classes = None) -> jax.Array:
    """Where a layer's activation speaks for a class (Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2).

    The layer's channels A_k (h, w) are added with weights a_k, and what is negative is cut off: relu(sum_k a_k A_k).
    a_k is the gradient of the class's logit with respect to A_k, averaged over the pixels.

    Args:
      model, images, classes: as of `saliency`.
      layer: a name of `activations`; most often that of the last stage, 'layer4' of ResNets and 'last' of MobileNetV2.

    Returns:
      (b, h, w) with the layer's height and width, float32 or wider, in units of logits; `eca_jax.plots.plot_heat_map`
      draws it over the image.

    Raises:
      EcaJaxError: as `saliency`; or there is no such layer, and the most similar ones are named, or it has no maps.

    Example:
      >>> import eca_jax
      >>> import jax.numpy as jnp
      >>> from eca_jax.analysis import grad_cam
      >>> from flax import nnx
      >>> model = eca_jax.create_model("eca_resnet18", width_multiplier=0.125, rngs=nnx.Rngs(0))
      >>> model.eval()
      >>> grad_cam(model, jnp.zeros((2, 64, 64, 3)), "layer4").shape
      (2, 2, 2)
    """
    network = _opened(model)
    path = named_layers(model, [layer]).get(layer)
    if path is None:
        raise EcaJaxError(f"layer: expected the name of one layer, got {layer!r}")
    return _cam(*network, jnp.asarray(images), _numbers(network, images, classes), layer, path)


Network = tuple[nnx.GraphDef, nnx.State]


def _opened(model: nnx.Module) -> Network:
    expect_evaluation(model)
    return nnx.split(model)


def _numbers(network: Network, images: Any, classes: Classes) -> jax.Array:
    """The class of each image, int32 (b)."""
    logits = _logits(*network, jnp.asarray(images))
    if classes is None:
        return jnp.argmax(logits, axis=-1)
    numbers, (count, known) = np.asarray(classes), logits.shape
    if not np.issubdtype(numbers.dtype, np.integer) or numbers.shape not in ((), (count,)):
        raise EcaJaxError(f"classes: expected a number or {count} of them, got {numbers.dtype} {numbers.shape}")
    if numbers.min() < 0 or numbers.max() >= known:
        raise EcaJaxError(f"classes: expected numbers from 0 to {known - 1}, got {numbers.min()} to {numbers.max()}")
    return jnp.broadcast_to(jnp.asarray(numbers, jnp.int32), (count,))


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, state)(images)


def _score(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """The sum over a batch of the logit (b, k) of each image's class (b)."""
    return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()


@functools.partial(jax.jit, static_argnums=0)
def _gradients(graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array, classes: jax.Array) -> jax.Array:
    return jax.grad(lambda images: _score(nnx.merge(graphdef, state)(images), classes))(images)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _integrated(
    graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array, classes: jax.Array, baseline: jax.Array, steps: int
) -> jax.Array:
    way = images - baseline

    def add(total: jax.Array, share: jax.Array) -> tuple[jax.Array, None]:
        return total + _gradients(graphdef, state, baseline + share * way, classes), None

    shares = (jnp.arange(steps, dtype=images.dtype) + 0.5) / steps
    total, _ = jax.lax.scan(add, jnp.zeros_like(way), shares)
    return way * total / steps


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _cam(
    graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array, classes: jax.Array, layer: str, path: Path
) -> jax.Array:
    def score(change: Any) -> tuple[jax.Array, jax.Array]:
        """Of the network in which `change` is added to the layer's output; and that output."""
        notes = Notes()
        network = tapped(nnx.merge(graphdef, state), {path: lambda x: notes.of(layer)(x) + change})
        logits = network(images)
        notes.expect(layer)
        return _score(logits, classes), notes[layer]

    maps = jax.eval_shape(score, 0.0)[1]
    if maps.ndim != 4:
        raise EcaJaxError(f"layer: expected one with maps, (b, h, w, c), got {layer!r}, whose shape is {maps.shape}")
    gradients, maps = jax.grad(score, has_aux=True)(jnp.zeros(maps.shape, maps.dtype))
    wide = jnp.promote_types(maps.dtype, jnp.float32)
    weights = gradients.mean(axis=(1, 2), keepdims=True, dtype=wide)
    return jax.nn.relu(jnp.sum(weights * maps.astype(wide), axis=-1))
