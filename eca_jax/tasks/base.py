"""Task, what a network is trained to do: the interface for the loader, the step, the loop and the commands.

A task is a frozen dataclass. Its fields are its configuration, its methods say what becomes of a record, which model is
built, what the loss is, and how an evaluation becomes scores. Everything else (the stream of examples, devices,
optimisers, checkpoints, signals) is the same for all tasks and knows none by name.

To add one, write a subclass and register it: `TASKS.register("my_task", MyTask)`. A configuration then says
`Config(task=MyTask(...))`, and the command line has its fields, without a prefix.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from eca_jax.data.imagenet import readable
from eca_jax.data.preprocess import PreprocessConfig, eval_image
from eca_jax.data.records import Source
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Backbone
from eca_jax.models.config import ModelConfig, build_model
from eca_jax.plain import TypedFields, to_plain

Example = Any
"""A tree (dicts) of NumPy arrays. It has at least `image`, uint8 (h, w, 3), and `mask`, float32 (): 0 where there is no
record, so that an evaluation counts every record once."""
Batch = Any
"""A tree of arrays (b, ...): examples, stacked."""
Sums = dict[str, jax.Array]
"""Totals over examples by name, float32 scalars; `count` is the number of examples."""
Finish = Callable[[], Example]
"""The work on an example that remains after its record has been read: decoding and everything with pixels."""


class PerClass(NamedTuple):
    """An evaluation class by class."""

    measure: str
    """What the values are: 'top-1'."""
    counts: np.ndarray
    """Examples of each class, (classes)."""
    values: np.ndarray
    """Shares, (classes); NaN of a class without examples."""


@dataclasses.dataclass(frozen=True)
class Task(TypedFields):
    """Base of the tasks, which are frozen dataclasses.

    Names of the form `train_*`, `loss` are of training, `eval_*`, `evaluate`, `scores` of evaluation.
    """

    name: ClassVar[str]
    """The task's name in `TASKS`, in a run and in weight files."""
    sums: ClassVar[tuple[str, ...]] = ("loss", "count")
    """The names of the totals that `loss` and `evaluate` give."""
    best: ClassVar[str]
    """The score whose highest value makes a checkpoint the best."""
    preprocess: PreprocessConfig = PreprocessConfig()
    """How images are made; a model carries it."""

    @property
    def examples_together(self) -> int:
        """The batch size has to be a multiple of this (2 if pairs of examples are mixed)."""
        return 1

    def with_preprocess(self, changes: Mapping[str, Any]) -> Self:
        """The task with changes to how evaluation images are made: see `PreprocessConfig.for_evaluation`."""
        return dataclasses.replace(self, preprocess=self.preprocess.for_evaluation(changes))

    # What becomes of a record.

    def check_data(self, train: Source, held_out: Source) -> None:
        """Raises an `EcaJaxError` if the task cannot be trained and evaluated on these data."""

    def batch_shape(self, seed: int, step: int) -> Any:
        """A property that all examples of a training batch share, such as the size to which they are padded.

        A function of the seed and the step alone, so that all processes agree. A step is compiled once for each shape.
        """
        return None

    def train_example(self, record: Any, source: Source, rng: np.random.Generator, batch_shape: Any) -> Finish:
        """A record (encoded image, label) -> an augmented example. All that is random comes from `rng`.

        What needs no pixels is done at once, the rest by what is returned.
        """
        raise NotImplementedError

    def eval_example(self, record: Any, source: Source) -> Finish:
        """A record -> the example to evaluate."""
        raise NotImplementedError

    def padding(self, source: Source) -> Example:
        """An example of zeros, with the mask 0, to fill up the last batch of an evaluation."""
        raise NotImplementedError

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples -> a batch."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)

    def abstract_batch(self, batch_size: int, num_classes: int) -> Batch:
        """Shapes and types (`jax.ShapeDtypeStruct`) of a training batch, the largest if there are several."""
        raise NotImplementedError

    # The network.

    def build_model(self, model: ModelConfig, num_classes: int, rngs: nnx.Rngs) -> Backbone:
        """The model that the configuration describes, with fresh weights, in training mode."""
        return build_model(model, num_classes, rngs)

    # Training.

    def whole_batch(self, batch: Batch) -> Batch:
        """The batch with another leaf (b, ...), where the loss of an example depends on the others (their mean weight).

        In the jitted step, before `optim.accumulate` cuts the global batch into parts, whose losses are averaged.
        """
        return batch

    def loss(self, model: Any, batch: Batch, key: jax.Array, dtype: DTypeLike) -> tuple[jax.Array, Sums]:
        """(the loss to differentiate, totals for the log), in the jitted step.

        Args:
          model: in training mode.
          batch: global (or one of its parts), after `whole_batch`.
          key: of this step: for dropout and all else that is random.
          dtype: of the images as they enter the network.
        """
        raise NotImplementedError

    # Evaluation.

    def evaluate(
        self, model: Any, batch: Batch, dtype: DTypeLike, candidates: Sequence[int] | None
    ) -> tuple[Sums, Any]:
        """(totals over the batch, what `scores` needs of each example or None), in a jitted step.

        Args:
          model: in evaluation mode.
          batch: with a mask.
          dtype: of the images as they enter the network.
          candidates: the classes that a prediction may name; None is all.
        """
        raise NotImplementedError

    def scores(self, sums: Mapping[str, float], outputs: Sequence[Any]) -> dict[str, float]:
        """Totals over all batches, and the second result of `evaluate` for each of them, on the host -> the scores.

        In a cluster every process has the outputs of all examples, in their order, and calls this.
        """
        return means(sums) | {"count": float(sums["count"])}

    # What an evaluation says of each example and each class, where that is asked for. A task need not know it.

    def evaluate_each(
        self, model: Any, batch: Batch, dtype: DTypeLike, candidates: Sequence[int] | None
    ) -> tuple[Sums, Any]:
        """As `evaluate`, with outputs that are enough for `per_class` and `predictions`, too: arrays (b, ...)."""
        raise EcaJaxError(
            f"the task {self.name!r} does not say what it predicts of each example (evaluate_each, per_class and "
            "predictions of eca_jax.tasks.Task): leave out --per-class and --predictions"
        )

    def per_class(self, outputs: Any, num_classes: int) -> PerClass:
        """How well each class is told from the others. `outputs`: of the n examples of the data, arrays (n, ...)."""
        raise NotImplementedError

    def predictions(self, outputs: Any, class_names: Sequence[str]) -> Iterator[dict[str, str]]:
        """A row of a table for each of the n examples, by the names of the columns, which are the same for all.

        Args:
          outputs: arrays (n, ...). An example whose mask is 0 does not count: its columns are empty.
          class_names: as they are to be shown.
        """
        raise NotImplementedError

    # Prediction.

    def predict_example(self, data: bytes) -> Example:
        """An encoded image -> the example that `predict` is given: by default its `image`, as an evaluation sees it.

        It has no label. Threads call this. Examples of equal shapes are predicted in batches; where the shapes of
        those that follow each other differ, each is predicted by itself.
        """
        return {"image": eval_image(data, self.preprocess)}

    def predict(self, model: Any, batch: Batch) -> Any:
        """A batch of such examples -> an array (b, ...), or a tree of them, in a jitted step: a prediction in each row.

        A row has to depend on its own example alone: a batch that is not full is filled up with zeros. `model` is in
        evaluation mode.
        """
        raise NotImplementedError

    # What is said and shown.

    def describe_training(self, metrics: Mapping[str, float]) -> str:
        """Describes a log row in a few words: 'loss 0.1234'."""
        return f"loss {metrics['loss']:.4f}"

    def describe(self, scores: Mapping[str, float]) -> str:
        """Describes the scores of an evaluation in a few words."""
        raise NotImplementedError

    def describe_prediction(self, prediction: Any, class_names: Sequence[str], top: int) -> Iterator[str]:
        """The lines that `eca-jax predict` prints under the file's name, of a row of what `predict` returns (NumPy)."""
        raise NotImplementedError

    def prediction_row(self, prediction: Any, class_names: Sequence[str], top: int) -> dict[str, Any]:
        """The same for programs, what `eca-jax predict --format csv` and `jsonl` write after the file's path.

        Strings, numbers, and lists and dicts of them, by name, NumPy's too. For CSV every row has to have the same
        names, and lists as long as those of the first, but for lists of strings, which are one column.
        """
        raise EcaJaxError(
            f"the task {self.name!r} has no CSV and no JSON lines, since it does not define `prediction_row`; "
            "leave out --format and --output, or define it (docs/plugins.md)"
        )

    # In a run.

    def to_dict(self) -> dict[str, Any]:
        """The task's name and fields."""
        return {"name": self.name, **to_plain(self)}


def most_probable(probabilities: np.ndarray, class_names: Sequence[str], top: int) -> list[tuple[str, Any]]:
    """The `top` classes of (classes), the most probable first: (name as it is shown, probability, a NumPy scalar).

    Raises:
      EcaJaxError: a probability is not finite.
    """
    order = np.argsort(-expect_finite(probabilities))[:top]
    return [(readable(class_names[int(i)]), probabilities[i]) for i in order]


def expect_finite(prediction: np.ndarray) -> np.ndarray:
    """Refuses predictions that are not finite, which come from damaged weights or a failed training."""
    if not np.isfinite(prediction).all():
        raise EcaJaxError(
            "predictions that are not finite numbers: the weights are damaged, or of a training that failed"
        )
    return prediction


def top_classes(best: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    """What `most_probable` gives, for a row."""
    return [{"class": name, "probability": probability} for name, probability in best]


def means(sums: Mapping[str, Any]) -> dict[str, float]:
    """Totals over examples -> their means, as Python floats; NaN if there is no example (all steps were skipped)."""
    count = float(sums["count"]) or float("nan")
    return {name: float(sums[name]) / count for name in sorted(sums) if name != "count"}


def zero_sums(names: Sequence[str]) -> Sums:
    """Totals of 0, over no example."""
    return {name: jnp.zeros((), jnp.float32) for name in names}
