"""A TFDS builder for scikit-learn's `digits`: 1,797 real handwritten digits of 8x8 pixels that come with the package.

It needs no download and no TensorFlow: the examples hand over encoded PNG bytes, which TFDS writes to ArrayRecord as
they are (arrays would make it import TensorFlow).
"""

import io
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

TEST_EVERY = 5


class Digits(tfds.core.GeneratorBasedBuilder):
    """Every fifth image, by its number in scikit-learn's order, is held out: 1,437 train, 360 test."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "scikit-learn's load_digits as greyscale PNG."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 8x8 pixels, ten classes: the test part of UCI's optdigits.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html",
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(test=False), "test": self._generate_examples(test=True)}

    def _generate_examples(self, test: bool):
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            if (i % TEST_EVERY == 0) == test:
                yield i, {"image": png(image * (255 / 16)), "label": int(label)}


def png(grey: np.ndarray) -> bytes:
    """(h, w) values of 0 to 255 -> a PNG file."""
    file = io.BytesIO()
    Image.fromarray(np.round(grey).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
