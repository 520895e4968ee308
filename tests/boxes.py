"""A task, a data source and what a network has to find in it, as somebody else would write them: boxes in images."""

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL import Image

from eca_jax.data.digits import png
from eca_jax.data.preprocess import PreprocessConfig, normalise
from eca_jax.data.records import SOURCES, Source
from eca_jax.models.base import Backbone
from eca_jax.models.config import ModelConfig
from eca_jax.tasks import TASKS
from eca_jax.tasks.base import Batch, Example, Finish, Sums, Task

SIZES = (8, 12)
MOST = 3
"""Boxes in an image."""


@dataclasses.dataclass(frozen=True)
class BoxRecords:
    """Grey images of 24 pixels with rectangles, bright and dark: (file, ((left, top, right, bottom, class), ...))."""

    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[bytes, Any]:
        rng = np.random.default_rng(self.numbers[index])
        pixels, boxes = np.full((24, 24), 128), []
        for _ in range(rng.integers(MOST + 1)):
            left, top = (int(v) for v in rng.integers(0, 14, 2))
            right, bottom = left + int(rng.integers(4, 10)), top + int(rng.integers(4, 10))
            kind = int(rng.integers(2))
            pixels[top:bottom, left:right] = 255 * kind
            boxes.append((left, top, right, bottom, kind))
        return png(pixels), tuple(boxes)


def open_boxes(name: str, split: str | None, data_dir: str | None = None) -> Source:
    """'boxes:50': 50 images to train, and half as many others."""
    number = int(name.removeprefix("boxes:"))
    numbers = range(number) if split == "train" else range(number, number + number // 2)
    return Source(name, split or "validation", BoxRecords(numbers), ("dark", "bright"))


@dataclasses.dataclass(frozen=True)
class Boxes(Task):
    """One box and its class a picture, against the average of those that are there."""

    preprocess: PreprocessConfig = PreprocessConfig(image_size=12, eval_resize=12)
    class_weight: float = 0.5

    name: ClassVar[str] = "test_boxes"
    sums: ClassVar[tuple[str, ...]] = ("loss", "valid", "count")
    best: ClassVar[str] = "overlap"

    def batch_shape(self, seed: int, step: int) -> int:
        return SIZES[step % 2]

    def train_example(self, record: Any, source: Source, rng: np.random.Generator, batch_shape: Any) -> Finish:
        flip = bool(rng.integers(2))
        return lambda: example(record, batch_shape, flip=flip)

    def eval_example(self, record: Any, source: Source) -> Finish:
        return lambda: example(record, SIZES[-1], flip=False)

    def padding(self, source: Source) -> Example:
        return jax.tree.map(np.zeros_like, example(source[0], SIZES[-1], flip=False))

    def abstract_batch(self, batch_size: int, num_classes: int) -> Batch:
        one = example(BoxRecords(range(1))[0], SIZES[-1], flip=False)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape), leaf.dtype), one)

    def build_model(self, model: ModelConfig, num_classes: int, rngs: nnx.Rngs) -> Backbone:
        return super().build_model(model, 4 + num_classes, rngs)

    def loss(self, model: Any, batch: Batch, key: jax.Array, dtype: Any) -> tuple[jax.Array, Sums]:
        losses = self.losses(model(normalise(batch["image"], self.preprocess, dtype)), batch)
        return losses.mean(), totals(losses, batch)

    def losses(self, output: jax.Array, batch: Batch) -> jax.Array:
        target, far = batch["target"], ((output[:, None, :4] - batch["target"]["boxes"]) ** 2).sum(-1)
        wrong = optax.softmax_cross_entropy_with_integer_labels(output[:, None, 4:], target["classes"])
        losses = jnp.where(target["valid"], far + self.class_weight * wrong, 0.0).sum(1)
        return losses / jnp.maximum(target["valid"].sum(1), 1)

    def evaluate(self, model: Any, batch: Batch, dtype: Any, candidates: Any) -> tuple[Sums, Any]:
        output = model(normalise(batch["image"], self.preprocess, dtype))
        outputs = {"output": output, "target": batch["target"], "mask": batch["mask"]}
        return totals(self.losses(output, batch), batch), outputs

    def scores(self, sums: Mapping[str, float], outputs: Sequence[Any]) -> dict[str, float]:
        found = jax.tree.map(lambda *parts: np.concatenate([np.asarray(part) for part in parts]), *outputs)
        there = found["target"]["valid"] & (found["mask"][:, None] > 0)
        overlaps = overlap(np.broadcast_to(found["output"][:, None, :4], (*there.shape, 4)), found["target"]["boxes"])
        median = float(np.median(np.abs(found["output"][:, None, :4] - found["target"]["boxes"])[there]))
        return super().scores(sums, outputs) | {"overlap": float(overlaps[there].mean()), "median_error": median}

    def describe(self, scores: Mapping[str, float]) -> str:
        return f"overlap {scores['overlap']:.4f} ({scores['count']:.0f} images), loss {scores['loss']:.4f}"

    def predict_example(self, data: bytes) -> Example:
        return {"image": example((data, ()), SIZES[-1], flip=False)["image"]}

    def predict(self, model: Any, batch: Batch) -> jax.Array:
        return model(normalise(batch["image"], self.preprocess))

    def describe_prediction(self, prediction: Any, class_names: Sequence[str], top: int) -> Iterator[str]:
        yield f"{class_names[int(prediction[4:].argmax())]} {' '.join(f'{side:.3f}' for side in prediction[:4])}"

    def prediction_row(self, prediction: Any, class_names: Sequence[str], top: int) -> dict[str, Any]:
        return {"prediction": class_names[int(prediction[4:].argmax())], "box": prediction[:4]}


def example(record: tuple[bytes, Any], size: int, *, flip: bool) -> Example:
    """Boxes as shares of the image, padded to the most that there are."""
    data, boxes = record
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((size, size)))
    sides, classes = np.zeros((MOST, 4), np.float32), np.zeros(MOST, np.int32)
    for i, (left, top, right, bottom, kind) in enumerate(boxes):
        sides[i] = np.array([24 - right, top, 24 - left, bottom] if flip else [left, top, right, bottom]) / 24
        classes[i] = kind
    image = image[:, ::-1] if flip else image
    target = {"boxes": sides, "classes": classes, "valid": np.arange(MOST) < len(boxes)}
    return {"image": np.ascontiguousarray(image), "target": target, "mask": np.ones((), np.float32)}


def totals(losses: jax.Array, batch: Batch) -> Sums:
    mask = batch["mask"]
    valid = (batch["target"]["valid"].sum(1) * mask).sum()
    return {"loss": (losses * mask).sum(), "valid": valid, "count": mask.sum()}


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(..., 4) and (..., 4) -> area of the intersection over that of the union."""
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    both = sides.prod(-1)
    areas = [np.clip(box[..., 2:] - box[..., :2], 0, None).prod(-1) for box in (a, b)]
    return both / np.maximum(areas[0] + areas[1] - both, 1e-9)


def register() -> None:
    """The task `test_boxes` and the data sets `boxes:NUMBER`."""
    TASKS.register(Boxes.name, Boxes)
    SOURCES.register("boxes", open_boxes)
