"""A table for people, for papers and for programs: Markdown, LaTeX and JSON."""

import dataclasses
import json
import os
import re
from collections.abc import Callable

from eca_jax.errors import EcaJaxError

NUMBER = re.compile(r"[+-]?(0|[1-9][\d,]*)(\.\d+)?(e[+-]?\d+)?")
"""A cell that is one, in columns that are set to the right."""
EMPTY = ("", "-")
"""What stands in a cell where there is nothing to say."""
LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "'": r"\textquotesingle{}",
    '"': r"\textquotedbl{}",
    "-": "-{}",  # two in a row would become a dash: --config
    "[": "{[}",  # after the end of a row it would begin a length
    "*": "{*}",
    **{character: f"\\{character}" for character in "$&#%_"},
}
"""Characters that LaTeX would take for something else."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of plain text, in which `code` can stand between backquotes. Units are in the header or in the cells.

    Raises:
      ValueError: a row has not as many cells as the header.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences below the table."""

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"{self.title}: {len(self.header)} columns, but {len(row)} cells in {row}")

    def to_markdown(self) -> str:
        """A table of GitHub's Markdown, which can be read in a terminal too; below it the notes as a list."""
        rows = [[cell.replace("|", r"\|") for cell in row] for row in (self.header, *self.rows)]
        widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
        right = self._numeric()
        rule = [("-" * (width - 1) + (":" if at_right else "-")) for width, at_right in zip(widths, right, strict=True)]
        lines = []
        for row in (rows[0], rule, *rows[1:]):
            cells = zip(row, widths, right, strict=True)
            lines.append(
                f"| {' | '.join(c.rjust(width) if at_right else c.ljust(width) for c, width, at_right in cells)} |"
            )
        notes = ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join([self.title, "", *lines, *notes]) + "\n"

    def to_latex(self) -> str:
        """A `table` with its caption; the document needs the packages of its first line.

        It is set smaller where the page is not wide enough.
        """
        columns = "".join("r" if at_right else "l" for at_right in self._numeric())
        header, *rows = (" & ".join(map(_latex, row)) + r" \\" for row in (self.header, *self.rows))
        body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *rows, r"\bottomrule"]
        lines = [
            r"% \usepackage[T1]{fontenc} \usepackage{textcomp, booktabs, graphicx}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(self.title)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            *body,
            r"\end{tabular}}",
            *(rf"\par\footnotesize {_latex(note)}" for note in self.notes),
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """An object with `title`, `rows` (an object each, by the names in the header) and `notes`.

        Columns of numbers have numbers, and null stands where there is nothing to say.
        """
        columns = list(zip(self.header, self._numeric(), strict=True))
        rows = [
            {name: _value(cell, numeric) for (name, numeric), cell in zip(columns, row, strict=True)}
            for row in self.rows
        ]
        return json.dumps({"title": self.title, "rows": rows, "notes": self.notes}, indent=2, ensure_ascii=False) + "\n"

    def _numeric(self) -> list[bool]:
        """Of each column: it has numbers, and nothing else."""
        columns = ([cell for cell in column if cell not in EMPTY] for column in zip(*self.rows, strict=True))
        return [bool(cells) and all(map(NUMBER.fullmatch, cells)) for cells in columns] or [False] * len(self.header)


FORMATS: dict[str, Callable[[Table], str]] = {
    "markdown": Table.to_markdown,
    "latex": Table.to_latex,
    "json": Table.to_json,
}
ENDINGS = {".md": "markdown", ".tex": "latex", ".json": "json"}
"""Of files in these formats."""


def format_of(path: str | None) -> str:
    """The format that the ending of a file's name says; Markdown where there is no file.

    Raises:
      EcaJaxError: none has this ending.
    """
    if path is None:
        return "markdown"
    ending = os.path.splitext(path)[1].lower()
    if ending not in ENDINGS:
        raise EcaJaxError(
            f"--output {path}: expected a file that ends in {', '.join(ENDINGS)}; or say --format, "
            f"one of {', '.join(FORMATS)}"
        )
    return ENDINGS[ending]


def _latex(text: str) -> str:
    pieces = ["".join(LATEX.get(character, character) for character in piece) for piece in text.split("`")]
    return "".join(rf"\texttt{{{piece}}}" if i % 2 else piece for i, piece in enumerate(pieces))


def _value(cell: str, numeric: bool) -> float | int | str | None:
    if cell in EMPTY:
        return None
    return json.loads(cell.replace(",", "").removeprefix("+")) if numeric else cell
