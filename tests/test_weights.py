"""The weights that are committed for the notebooks: small, what they say they are, and trained."""

import importlib
import json
import pathlib

import numpy as np
import pytest

import eca_jax
from eca_jax.analysis import in_batches

NOTEBOOKS = pathlib.Path(__file__).parents[1] / "notebooks"
WEIGHTS = NOTEBOOKS / "weights"
SCORES = json.loads((WEIGHTS / "scores.json").read_text())
KINDS = {"resnet18": "none", "eca_resnet18": "eca", "se_resnet18": "se", "srm_resnet18": "srm", "cbam_resnet18": "cbam"}
"""The name of each file -> the attention of its network."""


@pytest.fixture
def photographs(monkeypatch):
    """notebooks/photographs.py, as notebooks import it."""
    monkeypatch.syspath_prepend(NOTEBOOKS)
    return importlib.import_module("photographs")


def loaded(name):
    return eca_jax.load_pretrained(WEIGHTS / f"{name}.safetensors")


def top1(name, tiles, labels):
    model = loaded(name)
    logits = in_batches(model, eca_jax.preprocess(tiles, model), batch_size=len(tiles))
    return np.mean(logits.argmax(axis=1) == labels)


def test_every_file_is_small_and_has_a_score():
    files = {path.stem: path for path in WEIGHTS.glob("*.safetensors")}
    assert files.keys() == SCORES.keys() == KINDS.keys()
    assert max(path.stat().st_size for path in files.values()) < 1e6
    assert min(score["top1"] for score in SCORES.values()) > 0.8


@pytest.mark.parametrize("name", KINDS)
def test_a_file_says_what_it_is(name, photographs):
    """The configuration is what the files were trained with; the classes are the photographs."""
    found = loaded(name).architecture
    assert (found.attention.kind, found.small_stem, found.width_multiplier) == (KINDS[name], True, 0.125)
    assert found.num_classes == len(photographs.PHOTOGRAPHS)


def test_held_out_tiles_are_no_training_tiles(photographs):
    """Of the two photographs that need no package beside those of every installation."""
    for name in ("flower", "palace"):
        train, test = ({tile.tobytes() for tile in photographs.tiles(name, split)} for split in ("train", "test"))
        rows, columns = (side // photographs.TILE for side in photographs.photograph(name).shape[:2])
        assert not train & test
        assert len(train) + len(test) == rows * columns
        assert 0.15 < len(test) / (rows * columns) < 0.25


def test_eca_knows_two_of_the_photographs(photographs):
    """Chance is one tile in twelve."""
    names = list(photographs.PHOTOGRAPHS)
    found = [(tile, names.index(name)) for name in ("flower", "palace") for tile in photographs.tiles(name, "test")]
    assert top1("eca_resnet18", [tile for tile, _ in found], [label for _, label in found]) > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_the_scores_are_those_of_the_files(name, photographs):
    """To two tiles: on another processor sums are rounded otherwise, and a tile between two classes gets the other."""
    pytest.importorskip("skimage")
    tiles, labels = photographs.held_out()
    assert len(tiles) == SCORES[name]["count"]
    assert abs(top1(name, tiles, labels) - SCORES[name]["top1"]) <= 2 / len(tiles)
