"""How a training went: the rows of a run's metrics.jsonl as columns."""

import pathlib
from collections.abc import Mapping

import numpy as np

from eca_jax.errors import EcaJaxError
from eca_jax.runs.directory import METRICS_FILE
from eca_jax.runs.metrics import read_rows

History = Mapping[str, Mapping[str, np.ndarray]]
"""'train' and 'eval' -> the name of a column, such as 'step', 'epoch', 'lr', 'loss' or 'top1' -> its values (rows)."""


def read_history(run: str | pathlib.Path) -> History:
    """The log and the evaluations of a run, also of one that is not complete or is being trained.

    Args:
      run: its directory, the `workdir` of its configuration.

    Returns:
      `history["train"]` has the rows of the log ('step', 'epoch', 'lr' and what the task's loss reports, averaged over
      the steps since the row before), `history["eval"]` those of the evaluations ('step', 'epoch' and the scores). Each
      is a dict of arrays (n,), 'step' int64 and the others float64, of one value a row, in the order of the steps; a
      value that was not finite is NaN. A kind of which there is no row yet has no columns.

    Raises:
      EcaJaxError: the directory or its metrics.jsonl is not there, or a line of that is damaged, which is said.

    Example:
      After `eca-jax train`:

      >>> from eca_jax.analysis import read_history
      >>> history = read_history("runs/digits")
      >>> list(history["eval"])
      ['step', 'epoch', 'loss', 'top1', 'top5', 'count']
      >>> history["eval"]["top1"].dtype
      dtype('float64')
    """
    path = pathlib.Path(run) / METRICS_FILE
    if not path.is_file():
        raise EcaJaxError(f"run: there is no {path}; expected the --workdir of a training that has begun")
    rows = [row for row, _ in read_rows(path)]
    kinds = dict.fromkeys(("train", "eval", *(row["kind"] for row in rows)))
    return {kind: _columns([row for row in rows if row["kind"] == kind]) for kind in kinds}


def _columns(rows: list[dict]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for row in rows for name in row if name != "kind")
    types = {"step": np.int64}
    return {name: np.array([_number(row.get(name)) for row in rows], types.get(name, np.float64)) for name in names}


def _number(value: float | None) -> float:
    """JSON has no NaN: null stands for what was not finite."""
    return np.nan if value is None else value
