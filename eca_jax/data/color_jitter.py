"""Random brightness, contrast, saturation and hue: torchvision's ColorJitter, with its pixels on Pillow images.

Each of the four that is asked for is done once, in a random order, by a random factor. Brightness and contrast go
through a table of the 256 values, not through Pillow's `blend`, which holds the GIL.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance


def _brightness(image: Image.Image, factor: float) -> Image.Image:
    return _away_from(0, image, factor)


def _contrast(image: Image.Image, factor: float) -> Image.Image:
    return _away_from(int(np.asarray(image.convert("L")).mean() + 0.5), image, factor)


def _away_from(grey: int, image: Image.Image, factor: float) -> Image.Image:
    """Every value's difference from `grey` times `factor`, rounded and cut off as Pillow's `blend` does it."""
    values = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    table = Image.blend(Image.new("L", values.size, grey), values, factor)
    return image.point(list(table.tobytes()) * 3)


def _saturation(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(factor)


def _hue(image: Image.Image, turn: float) -> Image.Image:
    """Turned by a share of the colour circle, which has 256 steps; the shift is truncated as torchvision does it."""
    unchanged = list(range(256))
    shifted = [(value + int(turn * 255)) % 256 for value in unchanged]
    return image.convert("HSV").point(shifted + 2 * unchanged).convert("RGB")


ADJUSTMENTS: dict[str, tuple[Callable[[Image.Image, float], Image.Image], float, float]] = {
    "brightness": (_brightness, 1.0, 0.0),
    "contrast": (_contrast, 1.0, 0.0),
    "saturation": (_saturation, 1.0, 0.0),
    "hue": (_hue, 0.0, -0.5),
}
"""Name -> (function of image and factor, the factor that changes nothing, the smallest that there is)."""

Strengths = tuple[float, float, float, float]
"""How far the factors go from the one that changes nothing, in the order of `ADJUSTMENTS`; 0 leaves one out."""


def color_jitter(image: Image.Image, rng: np.random.Generator, strengths: Strengths) -> Image.Image:
    """An RGB image with the adjustments that `draw_adjustments` draws."""
    for name, factor in draw_adjustments(rng, strengths):
        image = ADJUSTMENTS[name][0](image, factor)
    return image


def draw_adjustments(rng: np.random.Generator, strengths: Strengths) -> list[tuple[str, float]]:
    """(name, factor) of the adjustments whose strength is not 0, in a random order, the factors uniform."""
    drawn = []
    for i in rng.permutation(len(ADJUSTMENTS)):
        name, strength = list(ADJUSTMENTS)[i], strengths[i]
        _, unchanged, smallest = ADJUSTMENTS[name]
        if strength:
            drawn.append((name, rng.uniform(max(unchanged - strength, smallest), unchanged + strength)))
    return drawn
