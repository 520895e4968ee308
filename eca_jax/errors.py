"""The one exception of the package's own, the nearest-name answer to a typo, and checks of single values."""

import difflib
import math
from collections.abc import Iterable


class EcaJaxError(ValueError):
    """Something that the user can mend: the message names the thing, the value, what was expected and what to do."""


def nearest(name: str, options: Iterable[str]) -> str:
    """' Did you mean a, b?' for the options nearest to `name`, or the list of options when none is near."""
    options = sorted(options)
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else f" Known: {', '.join(options)}."


def expect_positive(name: str, value: float) -> None:
    """Refuses what is not a positive number; `name` is the field's, as on the command line."""
    if not 0 < value < math.inf:
        raise EcaJaxError(f"{name}: expected a positive number, got {value}")


def expect_share(name: str, value: float) -> None:
    """Refuses what is not in [0, 1)."""
    if not 0 <= value < 1:
        raise EcaJaxError(f"{name}: expected 0 <= {name.rpartition('.')[2]} < 1, got {value}")


def expect_one_of(name: str, value: str, options: tuple[str, ...]) -> None:
    """Refuses what is not one of the options."""
    if value not in options:
        raise EcaJaxError(f"{name}: expected one of {', '.join(options)}, got {value!r}")
