"""The package's exception, suggestions for mistyped names, and checks of single values."""

import difflib
import math
import os
import pathlib
import sys
from collections.abc import Iterable, Sequence


class EcaJaxError(ValueError):
    """An error that the user can correct. The message names the thing, its value, what was expected and what to do."""


MOST_KNOWN = 40
"""How many options an error lists at most."""


def nearest(name: str, options: Iterable[str]) -> str:
    """' Did you mean a, b?' with the options most similar to `name`, in any case; if none is similar, the options."""
    options = sorted({*options})
    folded = {option.casefold(): option for option in options}
    near = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    more = f", … ({len(options)} in all)" if len(options) > MOST_KNOWN else ""
    return f" Did you mean {', '.join(near)}?" if near else f" Known: {', '.join(options[:MOST_KNOWN])}{more}."


def unknown_option(args: Sequence[str], unknown: Sequence[str], options: Iterable[str]) -> str:
    """The error text for the `unknown` among the `args` of a command that has these `options` ('--optim.lr').

    For an option, the text suggests options with the same ending ('--lr') or a similar spelling. For a word that is no
    option, it says which option stands before it.
    """
    options, said = sorted(options), []
    for option in (word.partition("=")[0] for word in unknown if word.startswith("-")):
        alike = [known for known in options if known.endswith("." + option.lstrip("-"))]
        near = alike or difflib.get_close_matches(option, options, n=3)
        said.append(f"unknown option {option}" + (f". Did you mean {', '.join(near)}?" if near else ": see --help"))
    if not said:
        words = [word for arg in args for word in (arg.split("=", 1) if arg.startswith("--") else [arg])]
        before = words[i - 1] if (i := words.index(unknown[0])) else ""
        said.append(f"unexpected {unknown[0]!r}" + (f": {before} takes no value" if before.startswith("--") else ""))
    return "; ".join(said)


def printable(text: str) -> str:
    """Text from a file, safe for a terminal: Python's escapes replace what is not printable (such as line ends)."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def expect_positive(name: str, value: float) -> None:
    """Refuses a value that is not a positive number; `name` is the name of the field, as on the command line."""
    if not 0 < value < math.inf:
        raise EcaJaxError(f"{name}: expected a positive number, got {value}")


def expect_at_least(name: str, value: int, least: int = 1) -> None:
    """Refuses a value below `least`."""
    if value < least:
        raise EcaJaxError(f"{name}: expected {least} or more, got {value}")


def expect_share(name: str, value: float) -> None:
    """Refuses a value outside [0, 1)."""
    if not 0 <= value < 1:
        raise EcaJaxError(f"{name}: expected 0 <= {name.rpartition('.')[2]} < 1, got {value}")


def expect_weight(name: str, value: float) -> None:
    """Refuses a value outside (0, 1]."""
    if not 0 < value <= 1:
        raise EcaJaxError(f"{name}: expected 0 < {name.rpartition('.')[2]} <= 1, got {value}")


def expect_one_of(name: str, value: object, options: tuple[str, ...]) -> None:
    """Refuses a value that is not one of the options."""
    if value not in options:
        raise EcaJaxError(f"{name}: expected one of {', '.join(options)}, got {value!r}")


def expect_text(name: str, path: str | pathlib.Path) -> None:
    """Refuses a path that is no text in this locale, because Orbax and safetensors cannot open it."""
    try:
        os.fsencode(path)
        str(path).encode()
    except UnicodeError as error:
        raise EcaJaxError(
            f"{name}: the name {str(path)!r} is no text in this locale, whose file names are "
            f"{sys.getfilesystemencoding()}; set PYTHONUTF8=1, or another name"
        ) from error
