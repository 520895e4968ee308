"""Figures as files, and their numbers beside them."""

import csv
import io
import os
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from eca_jax.convert.files import check_writable, write
from eca_jax.errors import EcaJaxError
from eca_jax.plots.style import styled

FORMATS = ("png", "svg", "pdf")
NO_DATE = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""What is left out, so that the same figure is the same file."""


def to_bytes(figure: Figure, form: str) -> bytes:
    """The figure as a file of the format 'png', 'svg' or 'pdf', the same bytes every time.

    Example:
      >>> import numpy as np
      >>> from eca_jax.plots import plot_heat_map, to_bytes
      >>> to_bytes(plot_heat_map(np.eye(7)).figure, "png")[:4]
      b'\x89PNG'
    """
    if form not in FORMATS:
        raise EcaJaxError(f"figure: expected one of the formats {', '.join(FORMATS)}, got {form!r}")
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format=form, metadata=NO_DATE.get(form))
    return buffer.getvalue()


def to_csv(rows: Sequence[Mapping[str, object]]) -> bytes:
    """A table with a heading; all rows have the columns of the first."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def check_outputs(files: Sequence[str]) -> None:
    """Refuses files that `write_figure` cannot write, for what takes long to compute."""
    for file in files:
        if _format(file) not in FORMATS:
            raise EcaJaxError(f"--output {file}: expected a name that ends in .{', .'.join(FORMATS)}")
        check_writable(file)
    check_writable(_numbers(files))


def write_figure(figure: Figure, rows: Sequence[Mapping[str, object]], files: Sequence[str]) -> list[str]:
    """Writes a figure into each of the files, and its numbers as CSV beside the first; returns what was written."""
    for file in files:
        write(file, to_bytes(figure, _format(file)))
    write(_numbers(files), to_csv(rows))
    return [*files, _numbers(files)]


def _format(file: str) -> str:
    return os.path.splitext(file)[1].removeprefix(".").lower()


def _numbers(files: Sequence[str]) -> str:
    return f"{os.path.splitext(files[0])[0]}.csv"
