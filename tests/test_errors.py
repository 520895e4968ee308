"""Names and values as the messages show them."""

import numpy as np
import pytest

from eca_jax.data.imagenet import readable
from eca_jax.data.records import class_difference
from eca_jax.errors import nearest, printable
from eca_jax.tasks import Classification
from eca_jax.tasks.base import expect_finite
from tests.damage import refusal


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Käse 乳酪", "Käse 乳酪"),
        ("\x1b[31mred\n", "\\x1b[31mred\\n"),
        ("\u202eabc\udc80", "\\u202eabc\\udc80"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_names_are_shown_as_text_that_a_terminal_does_not_obey(name, shown):
    assert printable(name) == readable(name) == shown
    assert list(Classification().describe_prediction(np.ones(1), [name], 1)) == [f"100.00%  {shown}"]
    assert class_difference((name,), ()) == f"1 only in the first: {shown}"


def test_predictions_that_are_not_numbers_are_not_shown():
    assert "predictions that are not finite numbers: the weights are damaged" in refusal(
        expect_finite, np.array([0.5, np.nan])
    )
    assert expect_finite(np.ones(2)).sum() == 2


def test_the_nearest_names_whatever_their_case_each_once_and_whole():
    assert nearest("CIFAR10", ["cifar10", "cifar10", "mnist"]) == " Did you mean cifar10?"
    assert nearest("b", ["Train", "Train", "val"]) == " Known: Train, val."
    many = nearest("?", [f"data_set_{i:03}" for i in range(300)])
    assert many.startswith(" Known: data_set_000, data_set_001, ")
    assert many.endswith(", data_set_039, … (300 in all).")
