"""The public names of the packages: what an `__init__` file imports under its own name, `from x import y as y`."""

import ast
import importlib
import pathlib
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]


def packages() -> dict[str, list[str]]:
    """Package -> its public names, sorted; those without any are left out. The top one comes first."""
    found = {}
    for path in sorted((ROOT / "eca_jax").rglob("__init__.py"), key=lambda path: path.parent):
        if names := sorted(public_names(path.read_text()), key=str.lower):
            found[".".join(path.parent.relative_to(ROOT).parts)] = names
    return found


def public_names(source: str) -> Iterator[str]:
    """What the text of an `__init__` file imports as itself, but `__version__`."""
    for node in ast.walk(ast.parse(source)):
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            if alias.asname == alias.name and not alias.name.startswith("__"):
                yield alias.name


def homes() -> dict[str, str]:
    """'package.name' -> where this object is documented: in the deepest package that has it.

    So all that a module defines is on one page, as the links from its source to the reference need it.
    """
    seen, found = {}, {}
    for package, names in sorted(packages().items(), key=lambda item: -item[0].count(".")):
        module = importlib.import_module(package)
        for name in names:
            path = f"{package}.{name}"
            found[path] = seen.setdefault(id(getattr(module, name)), path)
    return found
