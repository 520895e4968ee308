"""What version 0.1.0 wrote is read, and its runs go on; how the files came to be: tests/old/make.py."""

import json
import pathlib
import tarfile

import jax
import numpy as np
import pytest
from flax import nnx

from eca_jax import cli, load_pretrained
from eca_jax.config import OptimConfig, from_dict, to_dict
from eca_jax.convert.files import read_weights
from eca_jax.convert.pretrained import load
from eca_jax.convert.state_dict import NATIVE, to_state_dict
from eca_jax.data.preprocess import eval_image, normalise
from eca_jax.data.sources import open_source
from eca_jax.models.registry import resolve_attention
from eca_jax.nn.attention import AttentionConfig
from eca_jax.overrides import overridden
from eca_jax.runs.run import read_run
from eca_jax.tasks import Classification
from eca_jax.tasks.mix import MixConfig
from tests.commands import run

OLD = pathlib.Path(__file__).parent / "old"
EXPECTED = json.loads((OLD / "expected.json").read_text())


def rounding() -> list[str]:
    """Where this is the same, results are to the bit: the version of JAX and the processor."""
    about = pathlib.Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    processors = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return [jax.__version__, *processors]


SAME = rounding() == EXPECTED["rounding"]


@pytest.fixture
def old_run(tmp_path):
    with tarfile.open(OLD / "run.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "run"


@pytest.fixture
def old_config(old_run) -> dict:
    return json.loads((old_run / "config.json").read_text())


def rows(metrics: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in metrics.read_text().splitlines()]


@nnx.jit
def logits_of(model, images):
    return model(normalise(images, model.preprocess))


def assert_old_logits(model) -> None:
    """Of the first three test images."""
    images = np.stack([eval_image(data, model.preprocess) for data, _ in open_source("digits", "test[:3]")])
    expected = np.asarray(EXPECTED["logits"])
    np.testing.assert_allclose(logits_of(model, images), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


AS_THEN = """
import sys
from eca_jax import cli
from eca_jax.nn import conv
conv.TINY = 0  # on the CPU, a convolution with a tiny output was no product of patches then
sys.exit(cli.train_main(sys.argv[1:]))
"""


@pytest.mark.system
@pytest.mark.parametrize("command", [("train.py",), ("-c", AS_THEN)], ids=["today", "as_then"])
def test_a_run_goes_on_by_the_same_command_and_ends_as_the_old_code_ended_it(old_run, command, monkeypatch):
    """By the arithmetic of then to the bit; by today's, which rounds otherwise, closely."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # compiled as it was then, with LLVM's optimisations
    result = run(*command, "--workdir", str(old_run), *EXPECTED["args"])
    assert result.returncode == 0
    assert f"continuing {old_run} at step 6 of 10" in result.stdout
    found, expected = old_run / "metrics.jsonl", OLD / "metrics.jsonl"
    arrays, old_arrays = to_state_dict(read_run(old_run).model, NATIVE), read_weights(OLD / "ended.safetensors").tensors
    assert arrays.keys() == old_arrays.keys()
    if SAME and AS_THEN in command:
        assert found.read_text() == expected.read_text()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, old_arrays[name], err_msg=name)
    else:
        for row, old_row in zip(rows(found), rows(expected), strict=True):
            assert (row["kind"], row["step"]) == (old_row["kind"], old_row["step"])
            assert row["loss"] == pytest.approx(old_row["loss"], rel=1e-5)
        for name, array in arrays.items():
            np.testing.assert_allclose(array, old_arrays[name], rtol=0, atol=1e-5, err_msg=name)
    # What it now says of itself is today's.
    config = json.loads((old_run / "config.json").read_text())
    assert config["task"]["label_smoothing"] == 0.1
    assert config["task"]["mix"]["mixup_alpha"] == 0.2
    assert "label_smoothing" not in config["optim"]
    assert config["model"]["attention"] == {"kind": None, "kernel_sizes": 3}


def test_a_changed_value_is_refused_by_its_name_of_today(old_run, monkeypatch, capsys):
    monkeypatch.setattr("eca_jax.sharding.initialize_cluster", lambda config: None)
    other = [*EXPECTED["args"], "--optim.label-smoothing", "0.2"]
    assert cli.train_main(["--workdir", str(old_run), *other]) == 2
    assert "label_smoothing: 0.1 -> 0.2. Give the same values to continue it" in capsys.readouterr().err


def test_a_run_is_read(old_run):
    found = read_run(old_run)
    assert (found.step, found.metrics, found.num_examples) == (6, None, 320)
    (old_row,) = (row for row in rows(OLD / "metrics.jsonl") if (row["kind"], row["step"]) == ("eval", 5))
    assert read_run(old_run, 5).step == 5
    assert read_run(old_run, "best").metrics == {name: old_row[name] for name in ("loss", "top1", "top5", "count")}
    assert found.config.task.name == "classification"
    assert_old_logits(found.model)


def test_a_weight_file_is_read():
    model = load_pretrained(OLD / "weights.safetensors")
    assert model.architecture.attention == AttentionConfig("eca", kernel_sizes=3, circular=False)
    assert_old_logits(model)
    loaded = load(OLD / "weights.safetensors")
    assert (loaded.task, loaded.class_names) == (Classification(model.preprocess), None)
    assert loaded.names == tuple(map(str, range(10)))


def test_old_names_of_options_are_understood():
    def configured(args: str):
        return overridden("configs/digits.py", args.split(), prog="train.py", description="")

    config = configured("--optim.loss sigmoid --optim.label-smoothing=0.1 --optim.target_threshold 0.2 --optim.lr 0.3")
    task = config.task
    assert (task.loss_function, task.label_smoothing, task.target_threshold) == ("sigmoid", 0.1, 0.2)
    assert config.optim.lr == 0.3
    today = "--loss-function sigmoid --label-smoothing 0.1 --target-threshold 0.2 --optim.lr 0.3"
    assert configured(today) == config


def test_an_old_configuration_becomes_one_of_today(old_config):
    config = from_dict(old_config)
    assert config.model.attention == AttentionConfig(kernel_sizes=3, circular=False)
    assert config.task == Classification(config.task.preprocess, MixConfig(mixup_alpha=0.2), label_smoothing=0.1)
    assert (config.task.preprocess.image_size, config.task.preprocess.pad) == (8, 1)
    assert config.optim == OptimConfig(lr=0.1, weight_decay=5e-4, schedule="cosine", warmup_epochs=1)
    assert (config.batch_size, config.epochs, config.log_every, config.checkpoint.keep) == (64, 2, 4, 1)
    assert from_dict(to_dict(config)) == config
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


NOTHING = {"kind": None, "kernel_sizes": "released", "circular": False, "reduction": None, "bias": None}


@pytest.mark.parametrize(
    ("name", "said", "today"),
    [
        ("se_resnet50", {"reduction": 8, "bias": True}, AttentionConfig("se", reduction=8, bias=True)),
        ("se_resnet50", {}, AttentionConfig("se", reduction=None, bias=False)),
        ("seresnet50", {}, AttentionConfig("se", reduction=None, bias=True)),
        ("eca_resnet50", {"circular": True}, AttentionConfig("eca", kernel_sizes="released", circular=True)),
        ("resnet50", {"kind": "eca_ns", "kernel_sizes": [3, 5]}, AttentionConfig("eca_ns", kernel_sizes=(3, 5))),
        ("resnet50", {}, AttentionConfig("none")),
        # What the kind did not have was of no consequence.
        ("se_resnet50", {"kernel_sizes": 7, "circular": True}, AttentionConfig("se", reduction=None, bias=False)),
    ],
)
def test_an_old_attention_becomes_the_one_of_today(old_config, name, said, today):
    old_config["model"] |= {"name": name, "attention": NOTHING | said}
    assert resolve_attention(name, from_dict(old_config).model.attention) == today.resolved()
