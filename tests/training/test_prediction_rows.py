"""Rows for other programs are read back as they were, by csv and json; a file of them is whole or not there."""

import csv
import io
import json

import numpy as np
import pytest

from eca_jax.errors import EcaJaxError
from eca_jax.tasks import Classification, MultiLabel, Task
from eca_jax.training.prediction_rows import csv_rows, json_lines, row_writer
from tests.damage import refusal

ROW = {
    "path": 'a,"b"\n猫.png',
    "prediction": ["x", "y"],
    "probability": np.float32(0.9),
    "box": np.array([0.1, np.nan, -np.inf], np.float32),
    "top": [{"class": "x", "n": np.int64(3)}, {"class": "y", "n": np.array(4)}],
    "sure": np.bool_(True),
}


def test_json_lines_hold_the_shortest_numbers_and_null():
    file = io.StringIO()
    write = json_lines(file)
    write(ROW)
    write({"path": "b"})
    first, second = file.getvalue().splitlines()
    assert "猫" in first
    assert json.loads(first) == {
        "path": ROW["path"],
        "prediction": ["x", "y"],
        "probability": 0.9,
        "box": [0.1, None, None],
        "top": [{"class": "x", "n": 3}, {"class": "y", "n": 4}],
        "sure": True,
    }
    assert second == '{"path": "b"}'


def test_csv_has_a_column_for_each_item_and_one_for_a_list_of_names():
    file = io.StringIO()
    write = csv_rows(file)
    write(ROW)
    write({**ROW, "prediction": []})
    assert next(csv.DictReader(io.StringIO(file.getvalue(), newline=""))) == {
        "path": ROW["path"],
        "prediction": "x;y",
        "probability": "0.9",
        "box_1": "0.1",
        "box_2": "",
        "box_3": "",
        "top_1_class": "x",
        "top_1_n": "3",
        "top_2_class": "y",
        "top_2_n": "4",
        "sure": "True",
    }
    assert refusal(write, {**ROW, "top": []}).startswith(
        'a,"b"\\n猫.png: the columns path, prediction, probability, box_1, '
    )
    assert "use JSON lines" in refusal(write, {**ROW, "prediction": ["a;b"]})
    assert len([*csv.reader(io.StringIO(file.getvalue(), newline=""))]) == 3


def test_numbers_are_read_as_the_float32_that_they_were(rng):
    values = rng.random(100, np.float32) ** 8
    file = io.StringIO()
    json_lines(file)({"p": values})
    np.testing.assert_array_equal(np.float32(json.loads(file.getvalue())["p"]), values)


def test_a_file_has_its_name_when_it_is_whole(tmp_path):
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    out.write_text("before")

    def interrupted() -> None:
        with row_writer("jsonl", str(out)) as write:
            write({"path": "größe \udcff.png"})
            assert partial.read_bytes() == '{"path": "größe '.encode() + b'\xff.png"}\n', "there at once"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (out.read_text(), partial.exists()) == ("before", True)
    with pytest.raises(EcaJaxError, match="first"), row_writer("jsonl", str(out)):
        raise EcaJaxError("first")
    assert (out.read_text(), partial.exists()) == ("before", False), "nothing was in it"
    with row_writer("jsonl", str(out)) as write:
        write({"path": "a"})
    assert (out.read_text(), partial.exists()) == ('{"path": "a"}\n', False)


def test_a_place_that_takes_nothing_is_named(tmp_path):
    def write(path) -> None:
        with row_writer("csv", str(path)) as write:
            write({"path": "a"})

    (tmp_path / "full.csv.partial").symlink_to("/dev/full")
    said = refusal(write, tmp_path / "full.csv")
    assert said == f"cannot write {tmp_path}/full.csv: No space left on device; what was there before is as it was"
    assert refusal(write, tmp_path) == f"{tmp_path} is a directory; expected the name of a file to write"


def test_the_rows_of_tasks():
    probabilities, names = np.array([0.25, 0.6, 0.15], np.float32), ("a", "n01440764", "c")
    best = [{"class": "tench", "probability": np.float32(0.6)}, {"class": "a", "probability": np.float32(0.25)}]
    row = Classification().prediction_row(probabilities, names, 2)
    assert row == {"prediction": "tench", "probability": np.float32(0.6), "top": best}
    assert MultiLabel(threshold=0.2).prediction_row(probabilities, names, 1) == {
        "prediction": ["tench", "a"],
        "top": best[:1],
    }
    assert MultiLabel(threshold=0.7).prediction_row(probabilities, names, 1)["prediction"] == []
    for task in (Classification(), MultiLabel()):
        assert "not finite" in refusal(task.prediction_row, np.array([0.5, np.nan]), ("a", "b"), 1)

    class Other(Task):
        name = "other"

    assert refusal(Other().prediction_row, None, (), 1).startswith(
        "the task 'other' has no CSV and no JSON lines, since it does not define `prediction_row`; leave out --format "
    )
