"""Every attention learns the digits, by the recipe of the default run, where its definition allows images of 8 pixels.

python -m pytest -m slow -s tests/nn/attention/test_digits.py -k cbam
"""

import dataclasses

import pytest

from benchmarks.comparison import Case, digits, run_of
from eca_jax.training import train

DIGITS = digits()


@pytest.mark.slow
@pytest.mark.parametrize("case", DIGITS.cases, ids=lambda case: case.label)
def test_digits(case: Case, data_dir, tmp_path):
    config = dataclasses.replace(run_of(DIGITS, case, seed=0), workdir=str(tmp_path / "run"))
    evaluation = train(config).evaluation
    assert evaluation is not None
    print(f"{case.label}: held-out top-1 {evaluation['top1']:.2%}")
    assert evaluation["top1"] >= 0.98
