"""timm's RandAugment: two operations for each image, each done with probability 1/2, stronger with the magnitude.

RandAugment (Cubuk et al. 2019, arXiv:1909.13719, section 3) draws from a fixed list of operations, with one magnitude
for all. timm's version (timm/data/auto_augment.py; `rand-m7-mstd0.5-inc1` in "ResNet strikes back", Wightman et al.
2021) differs: an operation that was drawn is skipped half of the time, each operation draws its own magnitude from a
normal distribution, a larger magnitude always changes the image more, and the list does not contain the identity.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

NUM_OPERATIONS = 2
PROBABILITY = 0.5
MAX_MAGNITUDE = 10

Function = Callable[..., Image.Image]
"""(image, value, resample=filter, fillcolor=colour outside the image) -> image."""


def _affine(matrix: Callable[[float, int, int], tuple[float, ...]]) -> Function:
    """`matrix` of (value, width, height) is (a, b, c, d, e, f): pixel (x, y) comes from (ax + by + c, dx + ey + f)."""

    def transform(image: Image.Image, value: float, **edge) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix(value, *image.size), **edge)

    return transform


def _enhance(enhancer: type) -> Function:
    """Pillow's enhancement of a property (colour, contrast, ...): 0 removes it, 1 changes nothing, 2 doubles it."""
    return lambda image, factor, **_: enhancer(image).enhance(factor)


def _posterize(image: Image.Image, bits: int, **_) -> Image.Image:
    """Keeps the highest bits; 0 bits give black (Pillow's own function, and so timm, refuses that since Pillow 13)."""
    return image.point([value >> 8 - bits << 8 - bits for value in range(256)] * 3)


def _solarize_add(image: Image.Image, amount: int, **_) -> Image.Image:
    table = [min(value + amount, 255) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


def _nothing(level: float) -> None: ...


def _factor(level: float) -> float:
    return max(0.1, 1 + 0.9 * level)


OPERATIONS: dict[str, tuple[Function, Callable[[float], float | None]]] = {
    "auto_contrast": (lambda image, _, **__: ImageOps.autocontrast(image), _nothing),
    "equalize": (lambda image, _, **__: ImageOps.equalize(image), _nothing),
    "invert": (lambda image, _, **__: ImageOps.invert(image), _nothing),
    "rotate": (lambda image, degrees, **edge: image.rotate(degrees, **edge), lambda level: 30 * level),
    "posterize": (_posterize, lambda level: 4 - int(4 * abs(level))),
    "solarize": (lambda image, least, **_: ImageOps.solarize(image, least), lambda level: 256 - int(256 * abs(level))),
    "solarize_add": (_solarize_add, lambda level: int(110 * abs(level))),
    "color": (_enhance(ImageEnhance.Color), _factor),
    "contrast": (_enhance(ImageEnhance.Contrast), _factor),
    "brightness": (_enhance(ImageEnhance.Brightness), _factor),
    "sharpness": (_enhance(ImageEnhance.Sharpness), _factor),
    "shear_x": (_affine(lambda shear, w, h: (1, shear, 0, 0, 1, 0)), lambda level: 0.3 * level),
    "shear_y": (_affine(lambda shear, w, h: (1, 0, 0, shear, 1, 0)), lambda level: 0.3 * level),
    "translate_x": (_affine(lambda share, w, h: (1, 0, share * w, 0, 1, 0)), lambda level: 0.45 * level),
    "translate_y": (_affine(lambda share, w, h: (1, 0, 0, 0, 1, share * h)), lambda level: 0.45 * level),
}
"""Name -> (function, its value at a level). Levels are -1 to 1; the sign matters if there are two directions."""


def rand_augment(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    magnitude: float,
    std: float,
    resample: Callable[[], Image.Resampling],
    fill: tuple[int, ...],
) -> Image.Image:
    """The image after up to two operations; `resample` draws the filter, `fill` is the colour around the image."""
    for name, level in draw_operations(rng, magnitude, std):
        function, value = OPERATIONS[name]
        image = function(image, value(level), resample=resample(), fillcolor=fill)
    return image


def draw_operations(rng: np.random.Generator, magnitude: float, std: float) -> list[tuple[str, float]]:
    """Zero to two (name, level), drawn with replacement; the level's size is normally distributed, clipped to 0..1."""
    names = [list(OPERATIONS)[i] for i in rng.integers(len(OPERATIONS), size=NUM_OPERATIONS)]
    return [(name, _draw_level(rng, magnitude, std)) for name in names if rng.random() < PROBABILITY]


def _draw_level(rng: np.random.Generator, magnitude: float, std: float) -> float:
    size = min(max(rng.normal(magnitude, std), 0), MAX_MAGNITUDE) / MAX_MAGNITUDE
    return size if rng.random() < 0.5 else -size
