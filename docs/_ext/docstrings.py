"""Sphinx extension: docstrings of this package, whose inline markup is Markdown's, as reStructuredText."""

import itertools
import re
from collections.abc import Iterator
from typing import Any

CODE = re.compile(r"(?<![`\\:])`([^`]+)`(?![`_])")
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def to_rst(text: str) -> str:
    """`name` becomes a link to that name, or code where there is none; `other code` becomes code.

    What is markup in reStructuredText alone (`*`, `|`, a final `_`) is plain text here: it is escaped. Where code
    touches a word, as in the plural of `name`s, there is an escaped space between them, which is not shown.
    """
    parts = CODE.split(text)  # text, code, text, ...
    parts[1::2] = [f":py:obj:`{code}`" if NAME.fullmatch(code) else f"``{code}``" for code in parts[1::2]]
    for i in range(0, len(parts), 2):
        escaped = re.sub(r"(?<!\\)([*|]|(?<=\w)_(?!\w))", r"\\\1", parts[i])
        before = "\\ " if i and escaped and not escaped[0].isspace() else ""
        after = "\\ " if i + 1 < len(parts) and escaped and not escaped[-1].isspace() else ""
        parts[i] = f"{before}{escaped}{after}"
    return "".join(parts)


def converted(lines: list[str]) -> list[str]:
    """The lines of a docstring by `to_rst`, but examples (from `>>>` to an empty line), which are the same in both."""
    parts = itertools.groupby(zip(_in_examples(lines), lines, strict=True), key=lambda pair: pair[0])
    texts = [(example, "\n".join(line for _, line in pairs)) for example, pairs in parts]
    return "\n".join(text if example else to_rst(text) for example, text in texts).split("\n")


def _in_examples(lines: list[str]) -> Iterator[bool]:
    inside = False
    for line in lines:
        inside = line.lstrip().startswith(">>>") or (inside and bool(line.strip()))
        yield inside


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Before napoleon, which reads the sections.

    Of an attribute, napoleon takes for its type what comes before the first colon: that is nothing here.
    """
    lines[:] = converted(lines)
    if lines and what in ("attribute", "data", "property"):
        lines[0] = f": {lines[0]}"


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _process, priority=100)
    return {"parallel_read_safe": True}
