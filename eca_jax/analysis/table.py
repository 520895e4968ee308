"""A table for people, for papers and for programs: Markdown, LaTeX and JSON."""

import dataclasses
import json
import os
import re
import textwrap
from collections.abc import Callable

from eca_jax.errors import EcaJaxError

NUMBER = re.compile(r"[+-]?(0|[1-9][\d,]*)(\.\d+)?(e[+-]?\d+)?")
"""A cell that is one, in columns that are set to the right."""
EMPTY = ("", "-")
"""What stands in a cell where there is nothing to say."""
HEADER_WIDTH = 8
"""Characters in a line of a header in LaTeX, where the column's cells are not longer."""
LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after the end of a row it would begin a length
    "*": "{*}",
    **{character: f"\\{character}" for character in "$&#%_"},
}
"""Characters that LaTeX would take for something else."""
LATEX_CODE = {**LATEX, "'": r"\textquotesingle{}", '"': r"\textquotedbl{}"}
"""The same in code, whose quotes are straight."""


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
    remarks: tuple[str, ...] = ()
    """Columns of sentences: in LaTeX they are numbered notes, and the numbers stand in the first column."""
    not_in_latex: tuple[str, ...] = ()
    """Columns for those who read the table beside a terminal."""

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
        """A `table*` with its caption and label; the document needs the packages of its first line."""
        hidden = (*self.remarks, *self.not_in_latex)
        shown = [i for i, name in enumerate(self.header) if name not in hidden]
        right = self._numeric()
        numbers: dict[str, int] = {}
        rows = []
        for row in self.rows:
            first, *others = (_latex_cell(row[i]) for i in shown)
            rows.append([first + self._marks(row, numbers), *others])
        notes = [*(f"$^{{{number}}}$ {_latex(remark)}" for remark, number in numbers.items()), *map(_latex, self.notes)]
        lines = [
            r"% \usepackage[T1]{fontenc} \usepackage{textcomp, booktabs}",
            r"\begin{table*}",
            r"\centering\footnotesize",
            r"\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{_latex(self.title)}}}",
            rf"\label{{{_label(self.title)}}}",
            rf"\begin{{tabular}}{{{''.join('r' if right[i] else 'l' for i in shown)}}}",
            r"\toprule",
            *map(_latex_row, self._header_lines(shown)),
            r"\midrule",
            *map(_latex_row, rows),
            r"\bottomrule",
            r"\end{tabular}",
            *([r"\par\smallskip", r"\parbox{\linewidth}{\raggedright"] if notes else []),
            *(rf"{note}\par" for note in notes),
            *(["}"] if notes else []),
            r"\end{table*}",
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

    def _marks(self, row: tuple[str, ...], numbers: dict[str, int]) -> str:
        """The superscript of a row's remarks; new ones get the next numbers, the same remark has the same number."""
        remarks = [
            cell for name, cell in zip(self.header, row, strict=True) if name in self.remarks and cell not in EMPTY
        ]
        marks = [str(numbers.setdefault(remark, len(numbers) + 1)) for remark in remarks]
        return f"$^{{{','.join(marks)}}}$" if marks else ""

    def _header_lines(self, columns: list[int]) -> list[list[str]]:
        """The header of some columns in LaTeX, in lines that are hardly wider than the cells; short names are below."""
        names = []
        for i in columns:
            width = max(HEADER_WIDTH, *(len(row[i]) for row in self.rows), 0)
            names.append(textwrap.wrap(self.header[i], width, break_long_words=False, break_on_hyphens=False))
        height = max(map(len, names))
        padded = ([""] * (height - len(name)) + name for name in names)
        return [list(map(_latex, line)) for line in zip(*padded, strict=True)]

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
    pieces = text.split("`")
    return "".join(
        rf"\texttt{{{_escape(piece, LATEX_CODE)}}}" if i % 2 else _latex_prose(piece) for i, piece in enumerate(pieces)
    )


def _latex_prose(text: str) -> str:
    """Text that is no code: 2^20 and C^2 are powers, the letter upright as in the text; quotes open or close."""
    text = re.sub(r"(?<![^\s(])'(?=\S)", "`", text)
    text = re.sub(r'(?<![^\s(])"(?=\S)', "``", text).replace('"', "''")
    base, *others = re.split(r"(\d+|(?<=[A-Za-z]))\^(\d+)", text)
    powers = zip(others[::3], others[1::3], others[2::3], strict=True)
    return _escape(base, LATEX) + "".join(f"${of}^{{{power}}}${_escape(rest, LATEX)}" for of, power, rest in powers)


def _escape(text: str, characters: dict[str, str]) -> str:
    """Two hyphens in a row are kept from becoming a dash."""
    return re.sub("-(?=-)", "-{}", "".join(characters.get(character, character) for character in text))


def _latex_cell(cell: str) -> str:
    return "--" if cell == "-" else _latex(cell)


def _latex_row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _label(title: str) -> str:
    """Of a table, from what its title says before a colon: tab:eca-net-table-3."""
    return "tab:" + "-".join(re.findall(r"[a-z0-9]+", title.partition(":")[0].lower()))


def _value(cell: str, numeric: bool) -> float | int | str | None:
    if cell in EMPTY:
        return None
    return json.loads(cell.replace(",", "").removeprefix("+")) if numeric else cell
