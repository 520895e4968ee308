"""Pictures: images side by side, heat maps over an image, and the channels of an activation."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from eca_jax.errors import EcaJaxError
from eca_jax.plots.style import COLUMN, own_or_new, styled

GAP = 0.06
"""Between two images, as a share of an image's side."""
TITLE = 0.2
"""Above an image, for a line of its title, likewise."""


def plot_images(
    images: Sequence[np.ndarray],
    titles: Sequence[str] = (),
    *,
    columns: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Images in rows from left to right, with a title above each: mistakes, say, and what they were taken for.

    Args:
      images: n of them, (h, w, 3) or (h, w), which may differ in size: uint8, or floats from 0 to 1. Of normalised ones
        `eca_jax.analysis.denormalise` makes pixels.
      titles: none, or one for each image.
      columns: in a row; None makes about as many rows as columns.
      ax: where to draw; None is new axes of a column's width. What it shows is one picture, without ticks.

    Raises:
      EcaJaxError: there is no image, one has another shape, or there are other numbers of titles than of images.

    Example:
      >>> import numpy as np
      >>> from eca_jax.plots import plot_images
      >>> black, white = np.zeros((8, 8, 3)), np.ones((8, 8, 3))
      >>> plot_images([black, white], ["black", "taken for grey"]).figure.savefig("images.png")
    """
    images = [_pixels(image) for image in images]
    if not images:
        raise EcaJaxError("images: expected at least one, got none")
    if titles and len(titles) != len(images):
        raise EcaJaxError(f"titles: expected one for each of {len(images)} images, got {len(titles)}")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    lines = max((title.count("\n") + 1 for title in titles), default=0)
    tallest = max(image.shape[0] / max(image.shape[:2]) for image in images)
    across, down = 1 + GAP, tallest + GAP + TITLE * lines
    rows = math.ceil(len(images) / columns)
    with styled():
        ax = own_or_new(ax, COLUMN * rows * down / (columns * across))
        for i, image in enumerate(images):
            x, y = i % columns * across, i // columns * down
            height, width = (side / max(image.shape[:2]) for side in image.shape[:2])
            ax.imshow(image, extent=(x, x + width, y + height, y), cmap="gray", vmin=0, vmax=_most(image))
            if titles:
                ax.text(x + width / 2, y - 0.02, titles[i], ha="center", va="bottom", fontsize=6)
        ax.set_xlim(0, columns * across - GAP)
        ax.set_ylim(rows * down - GAP - TITLE * lines, -TITLE * lines)
        ax.axis("off")
    return ax


def plot_heat_map(
    heat: np.ndarray, image: np.ndarray | None = None, *, opacity: float = 0.5, ax: Axes | None = None
) -> Axes:
    """A map of numbers as colours, over the image that it belongs to: Grad-CAM, or a saliency without its channels.

    A map that has no number below 0 goes from dark (0) to bright; any other from blue over white (0) to red.

    Args:
      heat: (h, w), of any size: it is stretched to the image, with smooth steps.
      image: (h, w, 3) or (h, w), uint8 or floats from 0 to 1; None shows the map alone, with its own pixels.
      opacity: of the map over the image, from 0 to 1.
      ax: where to draw; None is new axes of a column's width, without ticks.

    Raises:
      EcaJaxError: a shape is another, or the map is not finite.

    Example:
      >>> import numpy as np
      >>> from eca_jax.plots import plot_heat_map
      >>> photograph, heat = np.full((224, 224, 3), 128, np.uint8), np.eye(7)
      >>> plot_heat_map(heat, photograph).figure.savefig("heat.png")
    """
    heat = np.asarray(heat, np.float64)
    if heat.ndim != 2 or not np.isfinite(heat).all():
        raise EcaJaxError(f"heat: expected finite numbers (h, w), got an array of the shape {heat.shape}")
    most = abs(heat).max() or 1.0
    least, colors = (-most, "RdBu_r") if heat.min() < 0 else (0, "inferno")
    with styled():
        if image is None:
            ax = own_or_new(ax, COLUMN * heat.shape[0] / heat.shape[1])
            ax.imshow(heat, cmap=colors, vmin=least, vmax=most)
        else:
            image = _pixels(image)
            height, width = image.shape[:2]
            place = (0, width, height, 0)
            ax = own_or_new(ax, COLUMN * height / width)
            ax.imshow(image, extent=place, cmap="gray", vmin=0, vmax=_most(image))
            options = {"alpha": opacity, "interpolation": "bilinear", "extent": place}
            ax.imshow(heat, cmap=colors, vmin=least, vmax=most, **options)
        ax.axis("off")
    return ax


def plot_activation_maps(maps: np.ndarray, *, columns: int | None = None, ax: Axes | None = None) -> Axes:
    """The channels of a layer's activation for one image, in rows from left to right, as one picture.

    All have one scale, from the smallest number (dark) to the largest, so that channels can be compared.

    Args:
      maps: (h, w, c), of `eca_jax.analysis.activations`; show some of many by `maps[..., :16]`.
      columns: in a row; None makes about as many rows as columns.
      ax: where to draw; None is new axes of a column's width, without ticks.

    Raises:
      EcaJaxError: the maps have another shape.

    Example:
      >>> import eca_jax
      >>> import jax
      >>> from eca_jax.analysis import activations
      >>> from eca_jax.plots import plot_activation_maps
      >>> from flax import nnx
      >>> model = eca_jax.create_model("eca_resnet18", width_multiplier=0.125, rngs=nnx.Rngs(0))
      >>> model.eval()
      >>> maps = activations(model, jax.random.normal(jax.random.key(0), (2, 64, 64, 3)), "layer1.0")["layer1.0"]
      >>> plot_activation_maps(maps[0]).figure.savefig("maps.png")
    """
    maps = np.asarray(maps, np.float64)
    if maps.ndim != 3 or not maps.size:
        raise EcaJaxError(f"maps: expected those of one image, (h, w, c), got the shape {maps.shape}")
    height, width, channels = maps.shape
    columns = min(columns or math.ceil(math.sqrt(channels)), channels)
    rows = math.ceil(channels / columns)
    gap = max(1, round(GAP * max(height, width)))
    picture = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for channel in range(channels):
        top, left = channel // columns * (height + gap), channel % columns * (width + gap)
        picture[top : top + height, left : left + width] = maps[..., channel]
    with styled():
        ax = own_or_new(ax, COLUMN * picture.shape[0] / picture.shape[1])
        ax.imshow(picture, cmap="viridis", interpolation="nearest")
        ax.axis("off")
    return ax


def _pixels(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) or (h, w); of one channel (h, w, 1) too."""
    image = np.asarray(image)
    image = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    if image.ndim != 2 and image.shape[2:] != (3,):
        raise EcaJaxError(f"image: expected (h, w, 3) or (h, w), got the shape {image.shape}")
    if image.dtype != np.uint8 and not (
        np.issubdtype(image.dtype, np.floating) and 0 <= image.min() <= image.max() <= 1
    ):
        raise EcaJaxError(
            f"image: expected uint8, or floats from 0 to 1, got {image.dtype} from {image.min():g} to {image.max():g}; "
            "of a normalised image, eca_jax.analysis.denormalise makes pixels"
        )
    return image


def _most(image: np.ndarray) -> float:
    return 255 if image.dtype == np.uint8 else 1.0
