"""Predictions for other programs: CSV and JSON lines, to stdout as they come, or a file that is whole or not there."""

import contextlib
import csv
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import numpy as np

from eca_jax.convert.files import check_writable
from eca_jax.errors import EcaJaxError, printable

Row = Mapping[str, Any]
"""Strings, numbers, lists and dicts of them by name; NumPy's too."""
Write = Callable[[Row], None]
SEPARATOR = ";"
"""Between names in a field of CSV, as in the tables that `csv:` reads."""


def csv_rows(file: TextIO) -> Write:
    """The heading is made of the first row. In place of a number that is not finite is nothing."""
    writer, heading = csv.writer(file, lineterminator="\n"), []

    def write(row: Row) -> None:
        cells = dict(cell for name, value in plain(row).items() for cell in _cells(name, value))
        if not heading:
            heading.extend(cells)
            writer.writerow(heading)
        if heading != [*cells]:
            raise EcaJaxError(
                f"{printable(row['path'])}: the columns {', '.join(cells)} are not those of the first row, "
                f"{', '.join(heading)}: CSV has one heading; use JSON lines (--format jsonl)"
            )
        writer.writerow(cells.values())

    return write


def json_lines(file: TextIO) -> Write:
    """An object a line. In place of a number that is not finite is null."""
    return lambda row: print(json.dumps(plain(row), ensure_ascii=False), file=file)


FORMATS: dict[str, Callable[[TextIO], Write]] = {"csv": csv_rows, "jsonl": json_lines}
"""Also the endings of their files."""


def plain(value: Any) -> Any:
    """Python's own types; of a float32 the shortest number that is read as the same: 0.9, not 0.8999999761581421."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        return [plain(item) for item in value]
    if isinstance(value, np.floating):
        value = float(str(value))
    elif isinstance(value, np.generic | np.ndarray):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cells(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(column, cell): one of a list of names; one for each item of another list ('box_1') or a dict ('top_1_class')."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        if any(SEPARATOR in item for item in value):
            raise EcaJaxError(f"{name}: {value}: CSV separates them by {SEPARATOR!r}; use JSON lines (--format jsonl)")
        yield name, SEPARATOR.join(value)
    elif isinstance(value, list | dict):
        items = value if isinstance(value, dict) else dict(enumerate(value, 1))
        for key, item in items.items():
            yield from _cells(f"{name}_{key}", item)
    else:
        yield name, value


@contextlib.contextmanager
def row_writer(form: str, path: str | None) -> Iterator[Write]:
    """What writes rows in one of `FORMATS`: to stdout where `path` is None, else into a new file.

    That has the name `path` when all rows are in it; before, and if they never are, it is called `path`.partial. Each
    row is there when it has been written.

    Raises:
      EcaJaxError: the file cannot be written.
    """
    with contextlib.nullcontext(sys.stdout) if path is None else _named_at_last(pathlib.Path(path)) as file:
        write_row = FORMATS[form](file)

        def write(row: Row) -> None:
            write_row(row)
            file.flush()

        yield write


@contextlib.contextmanager
def _named_at_last(path: pathlib.Path) -> Iterator[TextIO]:
    check_writable(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise EcaJaxError(f"cannot write {path}: {error.strerror}; what was there before is as it was") from error
    finally:
        if partial.exists() and not partial.stat().st_size:
            partial.unlink()
