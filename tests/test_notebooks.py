"""The notebooks as they are committed; `.ci/run` executes them."""

import json
import re

import pytest

from tests.documentation import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST = 1_000_000
"""Bytes of a file: the outputs are in it, and every clone has them."""


def cells(path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def text(cell: dict) -> str:
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_begins_with_its_title_and_one_cell_that_installs(path):
    first = json.loads(path.read_text())["cells"][0]
    assert first["cell_type"] == "markdown"
    assert re.match(r"# .+\n\n\S", text(first)), "a title, and a paragraph that answers its question"
    installs = [i for i, cell in enumerate(cells(path, "code")) if "%pip install" in text(cell)]
    assert installs == [0]
    assert text(cells(path, "code")[0]).startswith("try:\n    import eca_jax")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_was_executed_from_top_to_bottom(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    assert any("image/png" in output.get("data", {}) for output in outputs), "a picture"
    assert any(re.search(r"^ *assert ", text(cell), re.MULTILINE) for cell in code), "its numbers are held"
    assert path.stat().st_size < MOST


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#\s]+)", "\n".join(map(text, cells(path, "markdown"))))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []
