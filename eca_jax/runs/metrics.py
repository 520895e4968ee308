"""Reads metrics.jsonl: a row for each log interval and evaluation of a run."""

import pathlib
from typing import Any

from eca_jax.errors import EcaJaxError
from eca_jax.runs.directory import json_object


def read_rows(path: pathlib.Path) -> list[tuple[dict[str, Any], str]]:
    """Each row and its line; of a file that is not there none.

    A row has a 'kind', a 'step' and other numbers; None is what was not finite.

    A last line without an end was torn by a crash, or is being written; it is left out.

    Raises:
      EcaJaxError: a line is no such row; its number is said.
    """
    # In every locale, and with bytes that are no text: the check of their row names it.
    data = path.read_bytes() if path.exists() else b""
    lines = data.decode("utf-8", "surrogateescape").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json_object(line)
            numbers = [value for name, value in row.items() if name != "kind"]
            if not (isinstance(row["kind"], str) and isinstance(row["step"], int) and all(map(_is_number, numbers))):
                raise TypeError
            rows.append((row, line))
        except (ValueError, TypeError, KeyError) as error:
            raise EcaJaxError(f"{path}, line {number}: {line[:40]!r} is not a row of metrics; remove it") from error
    return rows


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)
