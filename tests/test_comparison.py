"""The queue and the statistics of benchmarks/comparison.py."""

import json

import numpy as np
import pytest
import scipy.stats

from benchmarks import comparison
from tests.tiny import brought_from_outside


@pytest.fixture(autouse=True)
def registered():
    """The networks of the comparison are gone after each test."""
    with brought_from_outside():
        comparison.register()
        yield


def test_the_interval_of_the_mean_is_student_s(rng):
    values = rng.normal(90, 1, 7).tolist()
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    mean, half = comparison.mean_and_half(values)
    np.testing.assert_allclose((mean - half, mean + half), expected, rtol=1e-12)


def test_differences_are_of_the_same_seed(rng):
    own, reference = (dict(enumerate(rng.normal(90, 1, 5).tolist())) for _ in range(2))
    expected = scipy.stats.ttest_rel([*own.values()], [*reference.values()]).confidence_interval(0.95)
    low, high = expected
    assert (
        comparison.paired(own, dict(reversed(reference.items()))) == f"{(low + high) / 2:+.2f} ± {(high - low) / 2:.2f}"
    )
    assert comparison.paired(own | {7: 0.0}, reference) == comparison.paired(own, reference)


def test_one_seed_has_a_mean_and_no_interval():
    mean, half = comparison.mean_and_half([90.0])
    assert mean == 90
    assert np.isnan(half)


def test_tables_share_the_runs_that_are_the_same():
    rows = comparison.plan(["fashion_mnist", "kernel_sizes"], seeds=10)
    labels = {row.case.label for row in rows if row.name == "kernel_sizes"}
    assert labels == {"1", "3", "5", "7", "9", "adaptive"}, "none, se and the released sizes are the other table's"
    assert len({row.recipe for row in rows}) == len(rows) == 9 * 5 + 6 * 3
    assert [row.config.seed for row in rows] == [0] * 15 + [1] * 15 + [2] * 15 + [3] * 9 + [4] * 9


def test_a_line_that_was_cut_off_is_no_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"recipe": "a", "top1": 0.5}) + '\n{"recipe": "b", "to')
    assert comparison.read_rows(path) == {"a": {"recipe": "a", "top1": 0.5}}
    with path.open("a") as file:
        file.write(json.dumps({"recipe": "c"}) + "\n")
    assert list(comparison.read_rows(path)) == ["a", "c"]


def test_what_is_left_takes_as_long_as_what_was_done():
    left = comparison.plan(["fashion_mnist"], seeds=1)
    known = {"a": {"experiment": "fashion_mnist", "case": "none", "seconds": 360.0}}
    known |= {"b": {"experiment": "fashion_mnist", "case": "none", "seconds": None}}
    assert comparison.hours_left(left, known) == pytest.approx(len(left) * 0.1)
    assert np.isnan(comparison.hours_left(left, {"b": known["b"]})), "a run that was continued says nothing"


def test_a_table_has_the_runs_that_are_there(tmp_path):
    experiment = comparison.experiments()["fashion_mnist"]
    rows = {}
    for label, seed, top1 in [("none", 0, 0.92), ("none", 1, 0.93), ("eca", 1, 0.94)]:
        config = comparison.run_of(experiment, experiment[label], seed)
        rows[comparison.recipe(config)] = {"top1": top1}
    table = comparison.to_table("fashion_mnist", experiment, rows, {})
    assert [(row[0], row[1], row[3]) for row in table.rows] == [("none", "2", "-"), ("eca", "1", "+1.00")]
