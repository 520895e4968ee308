"""Sphinx extension: `.. public:: eca_jax.nn` documents every public name of a package, from its docstring."""

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from names import ROOT, homes, packages
from sphinx.util.docutils import SphinxDirective


def documented(package: str) -> Iterator[str]:
    """The reStructuredText of a package: its own docstring, every name, and links to those that are on other pages."""
    module = importlib.import_module(package)
    places = homes()
    yield from (f".. automodule:: {package}", "   :no-members:", "")
    elsewhere = {
        name: home for name in packages()[package] if (home := places[f"{package}.{name}"]) != f"{package}.{name}"
    }
    for name in packages()[package]:
        if name not in elsewhere:
            yield from (f".. {directive(getattr(module, name))}:: {package}.{name}", "")
    if elsewhere:
        yield "Also here, from the packages below it: "
        yield ", ".join(f":py:obj:`{package}.{name} <{home}>`" for name, home in elsewhere.items())


def directive(thing: Any) -> str:
    """The directive of autodoc for an object."""
    if inspect.isclass(thing):
        return "autoclass"
    return "autofunction" if inspect.isroutine(thing) else "autodata"


class Public(SphinxDirective):
    """Documents the package that it is given."""

    required_arguments = 1

    def run(self) -> list[Any]:
        self.env.note_dependency(str(ROOT / self.arguments[0].replace(".", "/") / "__init__.py"))
        return self.parse_text_to_nodes("\n".join(documented(self.arguments[0])))


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.add_directive("public", Public)
    return {"parallel_read_safe": True}
