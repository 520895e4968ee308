"""Who imports whom in the package: no circles, and no module that needs the package's own front page."""

import ast
import importlib.util
import pathlib
from collections.abc import Iterator

from tests.commands import ROOT

PACKAGE = "eca_jax"
MAY_IMPORT_LATE = {"eca_jax", "eca_jax.cli"}
"""Import their own package inside functions, so that a command starts quickly."""


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text()) for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def imports(node: ast.AST, module: str, inside: bool = False) -> Iterator[tuple[str, str | None, bool]]:
    """(module, name taken from it or None, whether inside a function) of every import, those for types alone apart."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, None, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            package = module if (ROOT / module.replace(".", "/")).is_dir() else module.rpartition(".")[0]
            origin = importlib.util.resolve_name("." * child.level + (child.module or ""), package)
            yield from ((origin, alias.name, inside) for alias in child.names)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(child, module, inside or function)


def ours(name: str) -> bool:
    return name.split(".")[0] == PACKAGE


def needs(module: str) -> set[str]:
    """The modules of the package that a module imports, anywhere in it; the packages around them, which are run first,
    count by their own imports alone."""
    found = {f"{m}.{n}" if n and f"{m}.{n}" in TREES else m for m, n, _ in imports(TREES[module], module) if ours(m)}
    return found - {module}


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """Some way from a module back to itself."""
    done: set[str] = set()

    def search(way: list[str]) -> list[str] | None:
        if way[-1] in way[:-1]:
            return way[way.index(way[-1]) :]
        if way[-1] in done:
            return None
        found = next((f for after in sorted(graph[way[-1]]) if (f := search([*way, after]))), None)
        done.add(way[-1])
        return found

    return next((found for module in sorted(graph) if (found := search([module]))), None)


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_imports_are_seen_wherever_they_stand():
    text = "import a.b\nif TYPE_CHECKING:\n    import c\ndef f():\n    from d import e\nclass G:\n    import h\n"
    assert [*imports(ast.parse(text), "m")] == [("a.b", None, False), ("d", "e", True), ("h", None, False)]


def test_no_module_imports_itself_by_way_of_others():
    assert len(TREES) > 50
    found = circle({module: needs(module) for module in TREES})
    assert found is None, f"a circle of imports: {' -> '.join(found)}"


def test_every_module_that_is_imported_is_there():
    missing = {(module, name) for module in TREES for name in needs(module) if name not in TREES}
    assert not missing


def test_nothing_inside_the_package_uses_its_front_page():
    """What `eca_jax/__init__.py` offers comes from modules below it; they would wait for themselves."""
    found = [
        f"{module}: from {origin} import {name}" if name else f"{module}: import {origin}"
        for module in TREES
        for origin, name, _ in imports(TREES[module], module)
        if origin == PACKAGE and f"{origin}.{name}" not in TREES
    ]
    assert not found


def test_only_the_commands_import_our_own_modules_inside_functions():
    found = [
        f"{module}: {origin}"
        for module in TREES.keys() - MAY_IMPORT_LATE
        for origin, _, inside in imports(TREES[module], module)
        if inside and ours(origin)
    ]
    assert not found
