"""From a picture to what a detector takes, and back (torchvision, models/detection/transform.py).

Everything is NumPy on the host, in float32 as in the original: normalised first, then resized without antialiasing.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np

from eca_jax.errors import EcaJaxError, expect_positive
from eca_jax.plain import TypedFields

T = TypeVar("T", int, jax.Array)
MULTIPLE = 32
"""Sides of padded images are multiples of it."""


@dataclasses.dataclass(frozen=True)
class DetectionPreprocess(TypedFields, at="preprocess"):
    """How the images of a detector are made. Sizes in pixels."""

    short_side: int = 800
    """To which the short side is resized."""
    long_side: int = 1333
    """Or less, so that the long side does not become longer than this."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from the pixels (0 to 1), a channel each."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divides the result."""

    def __post_init__(self):
        expect_positive("preprocess.short_side", self.short_side)
        if self.long_side < self.short_side:
            raise EcaJaxError(
                f"preprocess.long_side: expected at least the short side, {self.short_side}, got {self.long_side}"
            )

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image of this size after the resize.

        They are rounded down, as in torchvision: 335 x 500 becomes 799 x 1194.
        """
        scale = min(self.short_side / min(height, width), self.long_side / max(height, width))
        return max(math.floor(height * scale), 1), max(math.floor(width * scale), 1)

    def buckets(self) -> list[tuple[int, int]]:
        """The sizes to which images are padded, from small to large: three of every orientation.

        A network is compiled once for each of them, instead of once for each of the dozens of sizes of COCO.
        """
        short, long = rounded_up(self.short_side), rounded_up(self.long_side)
        middle = rounded_up((short + long) // 2)
        sizes = {size for side in (short, middle, long) for size in ((short, side), (side, short))}
        return sorted(sizes, key=math.prod)


def rounded_up(sides: T) -> T:
    """A number, or an array of numbers, rounded up to a multiple of 32."""
    return -(-sides // MULTIPLE) * MULTIPLE


def detector_image(pixels: np.ndarray, config: DetectionPreprocess) -> np.ndarray:
    """uint8 (h, w, 3) -> normalised and resized, float32 (h', w', 3)."""
    image = pixels.astype(np.float32) / np.float32(255)
    image = (image - np.asarray(config.mean, np.float32)) / np.asarray(config.std, np.float32)
    return resize(image, config.resized(*pixels.shape[:2]))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 (h, w, c) -> (*size, c), bilinear, without antialiasing: PyTorch's `interpolate(align_corners=False)`."""
    for axis, side in enumerate(size):
        first, second, share = _neighbours(image.shape[axis], side)
        share = np.expand_dims(share, [other for other in range(3) if other != axis])
        image = np.take(image, first, axis) * (1 - share) + np.take(image, second, axis) * share
    return image


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every new pixel of a line: the two old ones between which it is, and the share of the second, float32."""
    scale = np.float64(np.float32(old) / np.float32(new))
    # Multiplied and subtracted in one operation, with one rounding, as PyTorch's compiled code does.
    place = np.maximum((scale * (np.arange(new) + 0.5) - 0.5).astype(np.float32), 0)
    first = place.astype(np.int64)
    return first, np.minimum(first + 1, old - 1), (place - first).astype(np.float32)


def bucket_of(size: tuple[int, int], buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The smallest bucket that holds an image of this height and width.

    Raises:
      EcaJaxError: none does.
    """
    for height, width in sorted(buckets, key=math.prod):
        if size[0] <= height and size[1] <= width:
            return height, width
    raise EcaJaxError(f"buckets: an image of {size[0]} x {size[1]} pixels fits into none of {list(buckets)}")


def to_batch(images: Sequence[np.ndarray], bucket: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Images (h, w, 3) -> padded with zeros at the bottom and on the right, (b, *bucket, 3), and their sizes (b, 2)."""
    batch = np.zeros((len(images), *bucket, 3), np.float32)
    for row, image in zip(batch, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return batch, np.asarray([image.shape[:2] for image in images], np.int32)
