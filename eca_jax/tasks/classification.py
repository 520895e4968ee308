"""Image classification: one right class an image (several in ImageNet-ReaL, which is an evaluation only)."""

import dataclasses
import math
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
from eca_jax.errors import MOST_KNOWN, EcaJaxError, expect_one_of, expect_share
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
from eca_jax.tasks.mix import MixConfig, mix

LOSSES = ("softmax", "sigmoid")


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """Cross entropy in training; top-1 and top-5 in evaluation."""

    mix: MixConfig = MixConfig()
    loss_function: str = "softmax"
    """'softmax': cross entropy. 'sigmoid': binary cross entropy of every class, averaged over the classes."""
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    """Of the loss function softmax, as of PyTorch's CrossEntropyLoss: one for each class of the data set, in its order.
    The sum over the global batch is divided by the weights of its labels; of mixed labels by the number of examples.
    Empty: all classes count alike."""
    target_threshold: float | None = None
    """Of the loss function sigmoid: targets above it (after smoothing and mixing) become 1, the others 0."""

    name: ClassVar[str] = "classification"
    sums: ClassVar[tuple[str, ...]] = ("loss", "top1", "top5", "count")
    best: ClassVar[str] = "top1"

    def __post_init__(self):
        expect_one_of("loss_function", self.loss_function, LOSSES)
        expect_share("label_smoothing", self.label_smoothing)
        if not all(0 <= weight < math.inf for weight in self.class_weights):
            raise EcaJaxError(f"class_weights: expected numbers of 0 or more, got {self.class_weights}")
        if self.class_weights and not any(self.class_weights):
            raise EcaJaxError("class_weights: all are 0, so that nothing would be trained; give some class another")
        if self.class_weights and self.loss_function != "softmax":
            raise EcaJaxError(f"class_weights: is of loss_function softmax, which is {self.loss_function}")
        if self.target_threshold is not None:
            expect_share("target_threshold", self.target_threshold)
            if self.loss_function != "sigmoid":
                raise EcaJaxError(f"target_threshold: is of loss_function sigmoid, which is {self.loss_function}")

    @property
    def examples_together(self) -> int:
        return 2 if self.mix.mixup_alpha or self.mix.cutmix_alpha else 1

    def check_data(self, train: Source, held_out: Source) -> None:
        if len(train.class_names) < 2:
            raise EcaJaxError(
                f"data set {train.name!r} has the classes {', '.join(train.class_names)}; expected 2 or more"
            )
        if train.multi_label:
            raise EcaJaxError(
                f"data set {train.name!r} has several labels an image, which is only for `eca-jax evaluate`; "
                "the task MultiLabel trains on it"
            )
        self._check_weights(train.class_names)

    def _check_weights(self, classes: Sequence[object]) -> None:
        """Refuses another number of weights than of classes."""
        if self.class_weights and len(self.class_weights) != len(classes):
            named = ", ".join(map(str, classes[:MOST_KNOWN])) + (", …" if len(classes) > MOST_KNOWN else "")
            raise EcaJaxError(
                f"class_weights: expected one for each of the {len(classes)} classes ({named}), "
                f"got {len(self.class_weights)}"
            )

    def train_example(self, record: Any, source: Source, rng: np.random.Generator, batch_shape: Any) -> Finish:
        data, label = record
        finish_image = begin_train_image(data, rng, self.preprocess)
        return lambda: _example(finish_image(), label, source)

    def eval_example(self, record: Any, source: Source) -> Finish:
        data, label = record
        return lambda: _example(eval_image(data, self.preprocess), label, source)

    def padding(self, source: Source) -> Example:
        size = self.preprocess.image_size
        label = _label(() if source.multi_label else 0, source)
        return {"image": np.zeros((size, size, 3), np.uint8), "label": label, "mask": np.zeros((), np.float32)}

    def abstract_batch(self, batch_size: int, num_classes: int) -> Batch:
        size = self.preprocess.train_size
        return {
            "image": jax.ShapeDtypeStruct((batch_size, size, size, 3), np.uint8),
            "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
            "mask": jax.ShapeDtypeStruct((batch_size,), np.float32),
        }

    def whole_batch(self, batch: Batch) -> Batch:
        """With the mean weight of its labels, by which their losses are divided; those of mixed labels are not."""
        if not self.class_weights or self.examples_together > 1:
            return batch
        weights = jnp.asarray(self.class_weights)[batch["label"]]
        return batch | {"mean_weight": jnp.broadcast_to(weights.mean(), weights.shape)}

    def loss(self, model: Any, batch: Batch, key: jax.Array, dtype: DTypeLike) -> tuple[jax.Array, Sums]:
        self._check_weights(range(model.architecture.num_classes))
        dropout_key, mix_key = jax.random.split(key)
        image = normalise(batch["image"], self.preprocess, dtype)
        targets = optax.smooth_labels(
            jax.nn.one_hot(batch["label"], model.architecture.num_classes), self.label_smoothing
        )
        image, targets = mix(image, targets.astype(dtype), mix_key, self.mix)
        image = erase(image, key, self.preprocess)
        logits = model(image, rngs=nnx.Rngs(dropout=dropout_key))
        losses = self.losses(logits, targets)
        if "mean_weight" in batch:
            losses = losses / batch["mean_weight"]
        return losses.mean(), score(logits, batch, losses)

    def losses(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Logits and targets (b, classes) -> the loss of every example (b), with the weights of its classes."""
        if self.class_weights:
            targets = targets * jnp.asarray(self.class_weights)  # in float32, whatever the network computes in
        if self.loss_function == "softmax":
            return optax.softmax_cross_entropy(logits, targets)
        if self.target_threshold is not None:
            targets = (targets > self.target_threshold).astype(targets.dtype)
        return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)

    def evaluate(
        self, model: Any, batch: Batch, dtype: DTypeLike, candidates: Sequence[int] | None
    ) -> tuple[Sums, None]:
        """The loss of an image with several labels is the mean of their cross entropies."""
        return self._evaluated(model, batch, dtype, candidates)[0], None

    def evaluate_each(
        self, model: Any, batch: Batch, dtype: DTypeLike, candidates: Sequence[int] | None
    ) -> tuple[Sums, Any]:
        """Outputs: the most probable class, its probability, and the rank of the right one (of `ranks`)."""
        sums, logits = self._evaluated(model, batch, dtype, candidates)
        return sums, {
            "label": batch["label"],
            "mask": batch["mask"],
            "prediction": jnp.argmax(logits, axis=1),
            "probability": jnp.max(jax.nn.softmax(logits), axis=1),
            "rank": ranks(logits, right_classes(batch["label"], logits.shape[-1])),
        }

    def _evaluated(
        self, model: Any, batch: Batch, dtype: DTypeLike, candidates: Sequence[int] | None
    ) -> tuple[Sums, jax.Array]:
        """(totals over the batch, logits)."""
        logits = model(normalise(batch["image"], self.preprocess, dtype))
        if candidates is not None:
            allowed = jnp.zeros(logits.shape[-1], bool).at[jnp.asarray(candidates)].set(True)
            logits = jnp.where(allowed, logits, -jnp.inf)
        right = right_classes(batch["label"], logits.shape[-1])
        losses = -jnp.mean(jax.nn.log_softmax(logits), axis=1, where=right)
        return score(logits, batch, losses), logits

    def scores(self, sums: Mapping[str, float], outputs: Sequence[Any]) -> dict[str, float]:
        if sums["count"] == 0:
            raise EcaJaxError("no image of the split has a label")
        return super().scores(sums, outputs)

    def per_class(self, outputs: Any, num_classes: int) -> PerClass:
        """Top-1 accuracy. An image with several labels counts for each of them."""
        label, mask = outputs["label"], outputs["mask"] > 0
        of_class = label if label.ndim == 2 else label[:, None] == np.arange(num_classes)
        counts = of_class[mask].sum(0)
        right = of_class[mask & (outputs["rank"] == 1)].sum(0)
        return PerClass("top-1", counts, np.divide(right, counts, out=np.full(num_classes, np.nan), where=counts > 0))

    def predictions(self, outputs: Any, class_names: Sequence[str]) -> Iterator[dict[str, str]]:
        """`rank` is 1 where top-1 counts the prediction as right, and up to 5 where top-5 does.

        It is empty where the right class is none that a prediction may name.
        """
        label, mask = outputs["label"], outputs["mask"] > 0
        expect_finite(outputs["probability"][mask])
        for i in range(len(mask)):
            right = np.flatnonzero(label[i]) if label.ndim == 2 else [label[i]]
            row = {
                "label": ";".join(class_names[int(c)] for c in right),
                "prediction": class_names[outputs["prediction"][i]],
                "probability": str(outputs["probability"][i]),
                "rank": str(outputs["rank"][i] or ""),
            }
            yield row if mask[i] else dict.fromkeys(row, "")

    def describe_training(self, metrics: Mapping[str, float]) -> str:
        return f"loss {metrics['loss']:.4f}, top-1 {metrics['top1']:.2%}"

    def describe(self, scores: Mapping[str, float]) -> str:
        """'top-1 99.17% (357 of 360), top-5 100.00%, loss 0.0312'."""
        right = round(scores["top1"] * scores["count"])
        return (
            f"top-1 {scores['top1']:.2%} ({right} of {scores['count']:.0f}), "
            f"top-5 {scores['top5']:.2%}, loss {scores['loss']:.4f}"
        )

    def predict(self, model: Any, batch: Batch) -> jax.Array:
        """-> the probabilities of the classes, (b, classes)."""
        return jax.nn.softmax(model(normalise(batch["image"], self.preprocess)))

    def describe_prediction(self, prediction: Any, class_names: Sequence[str], top: int) -> Iterator[str]:
        for name, probability in most_probable(prediction, class_names, top):
            yield f"{float(probability):7.2%}  {name}"

    def prediction_row(self, prediction: Any, class_names: Sequence[str], top: int) -> dict[str, Any]:
        """The most probable class, then the `top` ones."""
        best = most_probable(prediction, class_names, top)
        return {"prediction": best[0][0], "probability": best[0][1], "top": top_classes(best)}


def right_classes(label: jax.Array, num_classes: int) -> jax.Array:
    """int32 (b) or bool (b, classes) -> bool (b, classes)."""
    return label if label.ndim == 2 else label[:, None] == jnp.arange(num_classes)


def ranks(logits: jax.Array, right: jax.Array) -> jax.Array:
    """Logits and which classes are right (b, classes) -> the place of the right one among them (b): 1 is the first.

    Of an example with several labels the one with the highest logit counts, against the classes that are wrong.
    Ties count as wrong, so equal logits (or NaN, whose rank is 0) never score.
    """
    best = jnp.max(logits, axis=1, keepdims=True, where=right, initial=-jnp.inf)
    rank = 1 + jnp.sum(~right & (logits >= best), axis=1)
    return jnp.where(best[:, 0] > -jnp.inf, rank, 0)  # not NaN


def score(logits: jax.Array, batch: Batch, losses: jax.Array) -> Sums:
    """Sums over the examples whose mask is 1."""
    rank = ranks(logits, right_classes(batch["label"], logits.shape[-1]))
    mask = batch["mask"]
    return {
        "loss": jnp.sum(jnp.where(mask > 0, losses, 0.0)).astype(jnp.float32),
        "top1": jnp.sum(mask * (rank == 1)),
        "top5": jnp.sum(mask * ((rank >= 1) & (rank <= 5))),
        "count": jnp.sum(mask),
    }


def _example(image: np.ndarray, label: Any, source: Source) -> Example:
    """An image without a label does not count."""
    return {"image": image, "label": _label(label, source), "mask": np.asarray(label != (), np.float32)}


def _label(label: Any, source: Source) -> np.ndarray:
    """int32 (), or bool (classes)."""
    return np.isin(np.arange(len(source.class_names)), label) if source.multi_label else np.asarray(label, np.int32)
