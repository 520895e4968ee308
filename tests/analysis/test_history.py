"""A run's metrics.jsonl, written by hand, as columns."""

import json

import numpy as np
import pytest

from eca_jax.analysis import read_history
from eca_jax.errors import EcaJaxError

ROWS = [
    {"kind": "train", "step": 5, "epoch": 0.5, "lr": 0.1, "loss": 2.5, "top1": 0.25, "skipped": 0},
    {"kind": "train", "step": 10, "epoch": 1.0, "lr": 0.05, "loss": None, "top1": None, "skipped": 5},
    {"kind": "eval", "step": 10, "epoch": 1.0, "loss": 2.0, "top1": 0.5, "count": 40.0},
]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)


def test_columns_by_kind(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(TEXT)
    history = read_history(tmp_path)
    assert list(history) == ["train", "eval"]
    assert list(history["train"]) == ["step", "epoch", "lr", "loss", "top1", "skipped"]
    assert history["train"]["step"].tolist() == [5, 10]
    assert history["train"]["step"].dtype == np.int64
    np.testing.assert_array_equal(history["train"]["loss"], [2.5, np.nan])
    np.testing.assert_array_equal(history["train"]["lr"], [0.1, 0.05])
    assert {name: values.tolist() for name, values in history["eval"].items()} == {
        "step": [10],
        "epoch": [1.0],
        "loss": [2.0],
        "top1": [0.5],
        "count": [40.0],
    }


def test_of_a_run_that_is_being_trained(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(TEXT + '{"kind": "train", "step": 15, "epo')
    assert read_history(str(tmp_path))["train"]["step"].tolist() == [5, 10]
    (tmp_path / "metrics.jsonl").write_text("")
    assert read_history(tmp_path) == {"train": {}, "eval": {}}


def test_a_file_that_is_missing_or_damaged(tmp_path):
    with pytest.raises(EcaJaxError, match=r"^run: there is no .*/metrics.jsonl; expected the --workdir of a training"):
        read_history(tmp_path)
    for line in (
        "{",
        "[1, 2]",
        '{"step": 3}',
        '{"kind": "train", "step": null}',
        '{"kind": "eval", "step": 3, "x": "y"}',
    ):
        (tmp_path / "metrics.jsonl").write_text(f"{TEXT}{line}\n")
        with pytest.raises(EcaJaxError, match=r"metrics.jsonl, line 4: '[{\[].* is not a row of metrics; remove it"):
            read_history(tmp_path)
