"""The experiment of Figure 4: which runs it has, what it says of them, and that it goes on where it was."""

import dataclasses
import math
import pathlib

import pytest

from eca_jax.analysis import kernel_sizes
from eca_jax.analysis.kernel_sizes import Scored, parse_size, plan, run_trials, summarise, to_rows, to_table
from eca_jax.config import load_config
from eca_jax.errors import EcaJaxError
from eca_jax.models.config import ModelConfig
from eca_jax.nn.attention import AttentionConfig
from eca_jax.training.loop import Result


@pytest.fixture(scope="module")
def config():
    return load_config("digits")


def trials(config, *labels, seeds=1):
    return plan(config, [parse_size(label) for label in labels], (), seeds, "root")


def test_sizes_on_the_command_line():
    assert [parse_size(text) for text in ("3", "3,5,5,7", "adaptive", "3,", "-3")] == [
        3,
        (3, 5, 5, 7),
        "adaptive",
        "3,",
        "-3",
    ]


def test_the_plan(config):
    config = dataclasses.replace(config, seed=4, epochs=7)
    found = plan(config, [1, "adaptive", (3, 3, 5, 7)], ["se", "none"], 2, "root")
    labels = ["1", "adaptive", "3,3,5,7", "se", "none"]
    assert [(trial.label, trial.seed) for trial in found] == [(label, seed) for seed in (4, 5) for label in labels]
    assert [trial.reference for trial in found] == 2 * [False, False, False, True, True]
    attentions = [AttentionConfig("eca", kernel_sizes=s, circular=False) for s in (1, "adaptive", (3, 3, 5, 7))]
    attentions += [AttentionConfig("se"), AttentionConfig("none")]
    assert [trial.config.model.attention for trial in found] == 2 * attentions
    assert [trial.config.model.name for trial in found] == 2 * [*["eca_resnet18"] * 3, *["resnet18"] * 2]
    assert found[7].config.workdir == "root/3,3,5,7/seed-5"
    for trial in found:  # nothing else is changed
        assert dataclasses.replace(trial.config, model=config.model, seed=4, workdir=config.workdir) == config
        own = config.model
        assert dataclasses.replace(trial.config.model, name=own.name, attention=own.attention) == own


def test_other_options_of_the_attention_stay(config):
    model = ModelConfig("resnet18", attention=AttentionConfig("eca", circular=True, kernel_sizes=5), small_stem=True)
    (trial,) = trials(dataclasses.replace(config, model=model), "3")
    assert trial.config.model.attention == AttentionConfig("eca", circular=True, kernel_sizes=3)


@pytest.mark.parametrize(
    ("name", "sizes", "references", "message"),
    [
        ("se_resnet18", [3], [], "model: the attention 'se' of se_resnet18 has no kernel sizes; .* eca_resnet18"),
        ("eca_resnet18", [4], [], "attention.kernel_sizes: expected an odd size of at least 1, got 4"),
        ("eca_resnet18", ["adaptve"], [], "attention.kernel_sizes: unknown policy 'adaptve'"),
        ("eca_resnet18", [3], ["sse"], "attention.kind: unknown attention 'sse'. Did you mean"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(config, name, sizes, references, message):
    with pytest.raises(EcaJaxError, match=message):
        plan(dataclasses.replace(config, model=ModelConfig(name)), sizes, references, 1, "root")


def scored(config):
    values = {"3": (0.5, 0.6, 0.7), "se": (0.2, 0.2, 0.5)}
    runs = plan(config, [3], ["se"], 3, "root")
    return [Scored(run, values[run.label][run.seed], values[run.label][run.seed] + 0.1) for run in runs]


def test_mean_and_interval_by_hand(config):
    size, reference = summarise(scored(config), "last")
    assert (size.label, size.reference, size.values) == ("3", False, (0.5, 0.6, 0.7))
    assert (reference.label, reference.reference, reference.values) == ("se", True, (0.2, 0.2, 0.5))
    # The 97.5% quantile of Student's t with 2 degrees of freedom: p = 1/2 + t / (2 sqrt(2 + t^2)) for t.
    t = math.sqrt(2 * 0.95**2 / (1 - 0.95**2))
    assert (size.mean, size.low, size.high) == pytest.approx(
        (0.6, 0.6 - t * 0.1 / math.sqrt(3), 0.6 + t * 0.1 / math.sqrt(3)), abs=1e-12
    )
    assert reference.high - reference.mean == pytest.approx(t * math.sqrt(0.03) / math.sqrt(3), abs=1e-12)
    assert summarise(scored(config), "best")[0].mean == pytest.approx(0.7)


def test_one_seed_has_no_interval(config):
    (point, _) = summarise(scored(config)[:2], "last")
    assert point.mean == 0.5
    assert math.isnan(point.low)
    assert to_table([point], "top-1 (%)", 100).rows == (("3", "50.00", "-", "1"),)


def test_rows(config):
    size, reference = to_rows(scored(config))[:2]
    assert size == {
        "kernel_size": "3",
        "attention": "eca",
        "seed": 0,
        "last": 0.5,
        "best": 0.6,
        "run": "root/3/seed-0",
    }
    assert (reference["kernel_size"], reference["attention"], reference["run"]) == ("", "se", "root/se/seed-0")


def test_a_signal_ends_the_experiment(config, monkeypatch):
    def stopped(config):
        return Result(step=3, total_steps=9, evaluation=None, checkpoint=pathlib.Path("c"), signal=15)

    monkeypatch.setattr(kernel_sizes, "train", stopped)
    said = []
    (outcome,) = run_trials(trials(config, "1", "3"), said.append)
    assert isinstance(outcome, Result)
    assert said == ["run 1 of 2: kernel size 1, seed 0"]
