"""The one exception of the package's own, and the nearest-name answer to a typo."""

import difflib
from collections.abc import Iterable


class EcaJaxError(ValueError):
    """Something that the user can mend: the message names the thing, the value, what was expected and what to do."""


def nearest(name: str, options: Iterable[str]) -> str:
    """' Did you mean a, b?' for the options nearest to `name`, or the list of options when none is near."""
    options = sorted(options)
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else f" Known: {', '.join(options)}."
