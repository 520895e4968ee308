"""What only a caller in Python can give a training run: functions of its own."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from eca_jax.data.loader import Examples
from eca_jax.data.transform import Transform, Transformed, expect_transform, transform_name
from eca_jax.errors import EcaJaxError
from eca_jax.runs.directory import TRANSFORM
from eca_jax.runs.writers import RowWriter
from eca_jax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Hooks:
    """Functions of the user's own that `train` was given."""

    transform: Transform | None = None
    writers: Sequence[RowWriter] = ()

    def __post_init__(self):
        if self.transform is not None:
            expect_transform(self.transform)
        if not isinstance(self.writers, list | tuple) or not all(map(callable, self.writers)):
            raise EcaJaxError(
                "writers: expected a list of functions that take (values, step=...), such as [wandb.init().log], "
                f"got {self.writers!r:.60}"
            )

    def examples(self, task: Task) -> Examples:
        """What becomes of a record in training."""
        return task if self.transform is None else Transformed(task, self.transform)

    def description(self) -> dict[str, Any]:
        """What a checkpoint says of them: a run is continued only with a transform of the same name, or with none."""
        return {} if self.transform is None else {TRANSFORM: transform_name(self.transform)}
