"""What an evaluation says of each example and of each class: tables for people and for other programs."""

import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any, Self

import jax
import numpy as np

from eca_jax.data.imagenet import readable
from eca_jax.data.records import Source
from eca_jax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class EvaluatedExamples:
    """The examples of a data set, in its order, as a task has evaluated them."""

    task: Task
    source: Source
    outputs: Any
    """What `Task.evaluate_each` says of them: NumPy arrays (n, ...)."""

    @classmethod
    def joined(cls, task: Task, source: Source, batches: Sequence[Any]) -> Self:
        """Of the outputs of every batch, without what fills up the last one."""
        return cls(task, source, jax.tree.map(lambda *parts: np.concatenate(parts)[: len(source)], *batches))

    def per_class(self) -> Iterator[str]:
        """The lines of a table: a class each, in their order, of those that a prediction may name."""
        names = self.source.class_names
        measure, counts, values = self.task.per_class(self.outputs, len(names))
        yield f"{'count':>8} {measure:>8}  class"
        for c in range(len(names)) if self.source.candidates is None else self.source.candidates:
            value = "-" if np.isnan(values[c]) else f"{values[c]:.2%}"
            yield f"{counts[c]:>8} {value:>8}  {readable(names[c])}"

    def to_csv(self) -> bytes:
        """A table with a heading and a row for each example: its number, its file, and the task's `predictions`."""
        names = [readable(name) for name in self.source.class_names]
        rows = (
            {"index": str(i), "path": self.source.path(i), **row}
            for i, row in enumerate(self.task.predictions(self.outputs, names))
        )
        first, text = next(rows), io.StringIO(newline="")
        table = csv.DictWriter(text, first.keys(), lineterminator="\n")
        table.writeheader()
        table.writerow(first)
        table.writerows(rows)
        return text.getvalue().encode(errors="surrogateescape")
