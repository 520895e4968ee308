"""Tables of attentions, models, data sources and tasks by name, to which other packages can add.

If a name is not in a table, it is looked for among the entry points of the installed packages, and the module that the
entry point names is imported:

    [project.entry-points."eca_jax.attentions"]
    my_gate = "my_package.gates"

When the module is imported, it registers its entries. Without an entry point, the user imports it, in Python or with
`--plugin my_package.gates` on the command line. Runs and weight files name the plugins that they need, but only for the
error message; nothing is imported because a file says so.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Generic, TypeVar

from eca_jax.errors import EcaJaxError, nearest

T = TypeVar("T")

_registered: set[str] = set()
"""The plugins that have registered something so far."""
_loading: list[str] = []
"""The plugins that are being imported at this moment, the innermost last."""


class Registry(Mapping[str, T], Generic[T]):
    """A table of entries by name, to which plugins can add.

    `kind` says what the entries are ('attention'); the group of their entry points is `eca_jax.<kind>s`. `fault` says
    what is wrong with an entry that is to be registered under a name, or returns None.
    """

    def __init__(self, kind: str, entries: Mapping[str, T], fault: Callable[[str, T], str | None] | None = None):
        self.kind = kind
        self.group = f"eca_jax.{kind.replace(' ', '_')}s"
        self._entries: dict[str, T] = dict(entries)
        self._plugins: dict[str, str] = {}
        self._fault = fault

    def register(self, name: str, entry: T) -> None:
        """Adds an entry under a new name.

        Raises:
          EcaJaxError: the name is taken, by this package or another plugin, or something is wrong with the entry.
        """
        plugin = _loading[-1] if _loading else _calling_module()
        if not isinstance(name, str) or not name:
            raise EcaJaxError(f"plugin {plugin}: the {self.kind} {name!r}: expected a name, text, that is not empty")
        if name in self._entries and self._plugins.get(name) != plugin:
            owner = self._plugins.get(name, "eca_jax itself")
            raise EcaJaxError(f"plugin {plugin}: the {self.kind} {name!r} is registered already, by {owner}")
        if self._fault is not None and (fault := self._fault(name, entry)):
            raise EcaJaxError(f"plugin {plugin}: the {self.kind} {name!r}: {fault}")
        self._entries[name] = entry
        self._plugins[name] = plugin
        _registered.add(plugin)

    def plugin(self, name: str) -> str | None:
        """The plugin that has to be imported for this entry; None if this package has it."""
        return self._plugins.get(name)

    def unknown(self, name: str) -> EcaJaxError:
        """The error for a name that is not in the table, with the most similar ones."""
        known = {*self._entries, *(point.name for point in self._entry_points())}
        return EcaJaxError(
            f"unknown {self.kind} {name!r}.{nearest(name, known)} (One of a package of your own: --plugin MODULE)"
        )

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            for point in self._entry_points():
                if point.name == name:
                    load_plugin(point.module)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _entry_points(self) -> importlib.metadata.EntryPoints:
        return importlib.metadata.entry_points(group=self.group)


def load_plugin(name: str) -> None:
    """Imports a plugin: a module's name ('my_package.gates'; the working directory counts), or the path of a .py file.

    Raises:
      EcaJaxError: the import fails; the message names the plugin and the reason.
    """
    file = pathlib.Path(name).resolve() if name.endswith(".py") else None
    if file is not None and str(file) in sys.modules:
        return
    _loading.append(name if file is None else str(file))
    try:
        if file is None:
            with _working_directory_on_path():
                importlib.import_module(name)
        elif file.is_file():
            run_file(file)
        else:
            raise EcaJaxError(f"plugin {name}: there is no such file")
    except EcaJaxError:
        raise
    except FAULTS as error:
        raise EcaJaxError(f"plugin {name}: {describe_fault(error)}") from error
    finally:
        _loading.pop()


FAULTS = (Exception, SystemExit)
"""What a user's program may raise: anything. A `sys.exit` in it must not end the command as if it were complete."""


def describe_fault(error: BaseException) -> str:
    """The error of a user's program, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, SystemExit):
        return f"it ended the process (SystemExit: {text}) where it should only define things"
    return f"{type(error).__name__}: {text}"


def run_file(path: pathlib.Path) -> ModuleType:
    """Runs a Python file as a module whose name is the file's absolute path."""
    name = str(path.resolve())
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def with_missing_plugins(error: EcaJaxError, plugins: Sequence[str]) -> EcaJaxError:
    """An error from reading a run or weights; if plugins that they need are not loaded, an error that names those."""
    missing = [plugin for plugin in plugins if plugin not in _registered]
    if not missing:
        return error
    options = " ".join(f"--plugin {plugin}" for plugin in missing)
    return EcaJaxError(f"it was written with {', '.join(missing)}: give {options}, or import it before ({error})")


@contextlib.contextmanager
def _working_directory_on_path() -> Iterator[None]:
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)


def _calling_module() -> str:
    """The name of the module that called `register`, or the path of the file if it runs as a program."""
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).split(".")[0] == "eca_jax":
        frame = frame.f_back
    name = str(frame.f_globals.get("__name__", ""))
    return str(frame.f_globals.get("__file__", name)) if name == "__main__" else name
