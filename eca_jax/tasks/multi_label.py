"""Multi-label classification: an image may have any number of the classes, also none."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import DTypeLike

from eca_jax.data.preprocess import begin_train_image, eval_image, normalise
from eca_jax.data.records import Source
from eca_jax.errors import EcaJaxError, expect_share
from eca_jax.tasks.base import (
    Batch,
    Example,
    Finish,
    PerClass,
    Sums,
    Task,
    expect_finite,
    most_probable,
    top_classes,
)
from eca_jax.tasks.erasing import erase


@dataclasses.dataclass(frozen=True)
class MultiLabel(Task):
    """Binary cross entropy of every class in training; mean average precision in evaluation."""

    threshold: float = 0.5
    """The probability from which on `predict` calls a class present."""

    name: ClassVar[str] = "multi_label"
    best: ClassVar[str] = "map"

    def __post_init__(self):
        expect_share("threshold", self.threshold)

    def train_example(self, record: Any, source: Source, rng: np.random.Generator, batch_shape: Any) -> Finish:
        data, label = record
        finish_image = begin_train_image(data, rng, self.preprocess)
        return lambda: _example(finish_image(), label, source)

    def eval_example(self, record: Any, source: Source) -> Finish:
        data, label = record
        return lambda: _example(eval_image(data, self.preprocess), label, source)

    def padding(self, source: Source) -> Example:
        size = self.preprocess.image_size
        return _example(np.zeros((size, size, 3), np.uint8), (), source) | {"mask": np.zeros((), np.float32)}

    def abstract_batch(self, batch_size: int, num_classes: int) -> Batch:
        size = self.preprocess.train_size
        return {
            "image": jax.ShapeDtypeStruct((batch_size, size, size, 3), np.uint8),
            "label": jax.ShapeDtypeStruct((batch_size, num_classes), np.bool_),
            "mask": jax.ShapeDtypeStruct((batch_size,), np.float32),
        }

    def loss(self, model: Any, batch: Batch, key: jax.Array, dtype: DTypeLike) -> tuple[jax.Array, Sums]:
        image = erase(normalise(batch["image"], self.preprocess, dtype), key, self.preprocess)
        logits = model(image, rngs=nnx.Rngs(dropout=key))
        losses = _losses(logits, batch)
        return losses.mean(), _sums(losses, batch)

    def evaluate(
        self, model: Any, batch: Batch, dtype: DTypeLike, candidates: Sequence[int] | None
    ) -> tuple[Sums, Any]:
        logits = model(normalise(batch["image"], self.preprocess, dtype))
        outputs = {"logits": logits, "label": batch["label"], "mask": batch["mask"]}
        return _sums(_losses(logits, batch), batch), outputs

    def scores(self, sums: Mapping[str, float], outputs: Sequence[Any]) -> dict[str, float]:
        """map: the mean over the classes that some image has of scikit-learn's average precision."""
        from sklearn.metrics import average_precision_score  # slow to import

        logits, label, mask = (np.concatenate([np.asarray(o[k]) for o in outputs]) for k in ("logits", "label", "mask"))
        logits, label = logits[mask > 0], label[mask > 0]
        present = label.any(0)
        if not present.any():
            raise EcaJaxError("no image of the split has a label")
        if not np.isfinite(logits).all():
            return super().scores(sums, outputs) | {"map": float("nan")}
        precision = average_precision_score(label[:, present], logits[:, present], average="macro")
        return super().scores(sums, outputs) | {"map": float(precision)}

    def evaluate_each(
        self, model: Any, batch: Batch, dtype: DTypeLike, candidates: Sequence[int] | None
    ) -> tuple[Sums, Any]:
        return self.evaluate(model, batch, dtype, candidates)

    def per_class(self, outputs: Any, num_classes: int) -> PerClass:
        """scikit-learn's average precision of each class."""
        from sklearn.metrics import average_precision_score  # slow to import

        mask = outputs["mask"] > 0
        logits, label = outputs["logits"][mask], outputs["label"][mask]
        values, present = np.full(num_classes, np.nan), label.any(0)
        if np.isfinite(logits).all():
            for c in np.flatnonzero(present):
                values[c] = average_precision_score(label[:, c], logits[:, c])
        return PerClass("AP", label.sum(0), values)

    def predictions(self, outputs: Any, class_names: Sequence[str]) -> Iterator[dict[str, str]]:
        """The classes whose probability is at least `threshold`, and the probability of each of them."""
        mask = outputs["mask"] > 0
        expect_finite(outputs["logits"][mask])
        for label, probability, counts in zip(
            outputs["label"], np.asarray(jax.nn.sigmoid(outputs["logits"])), mask, strict=True
        ):
            found = np.flatnonzero(probability >= self.threshold)
            row = {
                "label": ";".join(class_names[int(c)] for c in np.flatnonzero(label)),
                "prediction": ";".join(class_names[int(c)] for c in found),
                "probability": ";".join(str(probability[c]) for c in found),
            }
            yield row if counts else dict.fromkeys(row, "")

    def describe(self, scores: Mapping[str, float]) -> str:
        """'mAP 91.20% (360 images), loss 0.0312'."""
        return f"mAP {scores['map']:.2%} ({scores['count']:.0f} images), loss {scores['loss']:.4f}"

    def predict(self, model: Any, batch: Batch) -> jax.Array:
        """-> the probability of every class, (b, classes)."""
        return jax.nn.sigmoid(model(normalise(batch["image"], self.preprocess)))

    def describe_prediction(self, prediction: Any, class_names: Sequence[str], top: int) -> Iterator[str]:
        """The most probable classes, those that count as present with a mark."""
        for name, probability in most_probable(prediction, class_names, top):
            yield f"{float(probability):7.2%} {'*' if probability >= self.threshold else ' '} {name}"

    def prediction_row(self, prediction: Any, class_names: Sequence[str], top: int) -> dict[str, Any]:
        """All classes that count as present, the most probable first, then the `top` most probable ones."""
        best = most_probable(prediction, class_names, len(class_names))
        present = [name for name, probability in best if probability >= self.threshold]
        return {"prediction": present, "top": top_classes(best[:top])}


def _losses(logits: jax.Array, batch: Batch) -> jax.Array:
    """-> (b): binary cross entropy, averaged over the classes."""
    return optax.sigmoid_binary_cross_entropy(logits, batch["label"].astype(logits.dtype)).mean(-1)


def _sums(losses: jax.Array, batch: Batch) -> Sums:
    mask = batch["mask"]
    return {"loss": jnp.sum(jnp.where(mask > 0, losses, 0.0)).astype(jnp.float32), "count": jnp.sum(mask)}


def _example(image: np.ndarray, label: Any, source: Source) -> Example:
    """An image without a label counts too: that it has none is what is known of it."""
    present = np.isin(np.arange(len(source.class_names)), label)
    return {"image": image, "label": present, "mask": np.ones((), np.float32)}
