"""A function of the user's own on training images, before the configuration's crop, flip and other augmentations."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eca_jax.data.bad_records import NotTheRecord
from eca_jax.data.loader import Example, Examples, Finish
from eca_jax.data.preprocess import decode
from eca_jax.data.python_records import as_ppm, expect_pixels
from eca_jax.data.records import Source
from eca_jax.errors import EcaJaxError

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""(a decoded training image, uint8 (h, w, 3); the generator of this example in this epoch) -> uint8 (any h, any w, 3).

It is called in the loader's threads, several at once. All that is random has to come from the generator, and then the
batches depend on (seed, step) alone, as they do without it.
"""


@dataclasses.dataclass(frozen=True)
class Transformed:
    """What a task makes of records whose training images are transformed first; evaluation images are not touched."""

    task: Examples
    transform: Transform

    def train_example(self, record: Any, source: Source, rng: np.random.Generator, batch_shape: Any) -> Finish:
        data, label = record

        def finish() -> Example:
            pixels = np.array(decode(data))  # its own, which may be written to
            try:
                changed = np.asarray(self.transform(pixels, rng))
                expect_pixels("the transform's result", changed, channels=(3,))
            except Exception as error:  # the user's own code: it ends the run, and is not counted as a bad record
                raise NotTheRecord(error) from error
            return self.task.train_example((as_ppm(changed), label), source, rng, batch_shape)()

        return finish

    def batch_shape(self, seed: int, step: int) -> Any:
        return self.task.batch_shape(seed, step)

    def eval_example(self, record: Any, source: Source) -> Finish:
        return self.task.eval_example(record, source)

    def padding(self, source: Source) -> Example:
        return self.task.padding(source)

    def collate(self, examples: Sequence[Example]) -> Example:
        return self.task.collate(examples)


def transform_name(transform: Transform) -> str:
    """What a run calls a transform: the name of the function, or of the class of an object."""
    return getattr(transform, "__name__", type(transform).__name__)


def expect_transform(transform: Any) -> None:
    """Refuses what cannot be called."""
    if not callable(transform):
        raise EcaJaxError(
            "transform: expected a function of (image, rng) that returns an image, both uint8 (h, w, 3), "
            f"got a {type(transform).__name__}"
        )
