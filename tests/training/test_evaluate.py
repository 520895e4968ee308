"""Top-1 and top-5 are those of NumPy: with a ragged end, several labels, a choice among some of the classes."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from eca_jax import cli, create_model
from eca_jax.config import Config, DataConfig, ModelConfig
from eca_jax.convert.files import write_safetensors
from eca_jax.convert.pretrained import own_metadata
from eca_jax.convert.state_dict import NATIVE, to_state_dict
from eca_jax.data.imagenet import candidates, synsets
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.data.sources import open_source
from eca_jax.sharding import make_mesh
from eca_jax.tasks import Classification
from eca_jax.tasks.classification import score
from eca_jax.training.evaluate import evaluate, evaluate_weights
from eca_jax.training.loop import train
from eca_jax.training.program import build_program
from tests.damage import refusal
from tests.datasets import prepare_like
from tests.oracles import top_1_and_5

TINY = PreprocessConfig(image_size=16, eval_resize=16)
SETS = {
    "imagenet2012": "validation",
    "imagenet_v2": "test",
    "imagenet_a": "test",
    "imagenet_r": "test",
    "imagenet2012_real": "validation",
}


def test_a_whole_split_with_a_ragged_end_on_1_and_8_devices():
    """360 held-out digits in batches of 128. (Two processes: tests/test_cluster.py.)"""
    config = Config(
        model=ModelConfig(name="eca_resnet18", small_stem=True, width_multiplier=0.125),
        data=DataConfig(name="digits", eval_split="test", num_threads=1),
        task=Classification(PreprocessConfig(image_size=8, eval_resize=8)),
        batch_size=128,
    )
    source = open_source("digits", "test")
    one, eight = (
        build_program(config, make_mesh(jax.devices()[:devices]), num_examples=1437, num_classes=10)
        for devices in (1, 8)
    )
    state = jax.device_get(one.init())
    results = [evaluate(config, program, state, source) for program in (one, eight)]
    model = nnx.merge(one.network.eval, state.params, state.batch_stats)
    expected = top_1_and_5(nnx.jit(model), config.task.preprocess, source)
    assert 0 < expected[0] < expected[1] < 1
    for result in results:
        assert (result["top1"], result["top5"]) == pytest.approx(expected, rel=1e-6)
        assert result["count"] == 360


def test_scores_of_several_labels_are_what_numpy_says(rng):
    logits = rng.normal(size=(60, 10)).astype(np.float32)
    right = rng.random((60, 10)) < 0.2
    right[0], right[1] = False, True
    mask = right.any(1).astype(np.float32)
    order = np.argsort(-logits, axis=1)
    top1 = sum(right[i, order[i, 0]] for i in range(60))
    top5 = sum(right[i, order[i, :5]].any() for i in range(60))
    batch = {"label": jnp.asarray(right), "mask": jnp.asarray(mask)}
    sums = score(jnp.asarray(logits), batch, jnp.zeros(60))
    assert (float(sums["top1"]), float(sums["top5"]), float(sums["count"])) == (top1, top5, mask.sum())


@pytest.mark.parametrize(
    ("logits", "labels", "top1"),
    [
        ([2, 2, 0], [0, 1], 1),  # a tie between right classes
        ([2, 2, 0], [0, 2], 0),  # with a wrong one
        ([np.nan, 2, 0], [0, 1], 0),
        ([-np.inf, -np.inf, -np.inf], [0, 1], 0),
    ],
)
def test_ties_and_nan_with_several_labels(logits, labels, top1):
    label = jnp.zeros((1, 3), bool).at[0, jnp.asarray(labels)].set(True)
    sums = score(jnp.asarray([logits], jnp.float32), {"label": label, "mask": jnp.ones(1)}, jnp.zeros(1))
    assert float(sums["top1"]) == top1


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of a model of 1000 classes, and its logits."""
    model = create_model("eca_resnet18", width_multiplier=0.125, small_stem=True, rngs=nnx.Rngs(1))
    model.preprocess = TINY
    model.eval()
    # It prefers a few classes, or all its answers were wrong.
    model.fc.bias[...] = model.fc.bias[...].at[jnp.asarray([1, 2, 6, 11, 13, 40, 900])].add(3)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    write_safetensors(path, to_state_dict(model, NATIVE), own_metadata(model))
    return path, nnx.jit(model)


@pytest.fixture(scope="module")
def imagenets(tmp_path_factory):
    """Data sets of ImageNet's classes; 70 images are no multiple of a batch."""
    directory = tmp_path_factory.mktemp("imagenets")
    for name, split in SETS.items():
        prepare_like(name, directory, {split: 70})
    return directory


@pytest.mark.parametrize("name", SETS)
def test_the_evaluation_sets_of_imagenet_by_name(imagenets, name, weights):
    source = open_source(name, None, str(imagenets))
    assert source.split == SETS[name]
    path, logits = weights
    _, metrics = evaluate_weights(str(path), name, data_dir=str(imagenets))
    expected = top_1_and_5(logits, TINY, source)
    assert 0 < expected[1] < 1
    assert (metrics["top1"], metrics["top5"]) == pytest.approx(expected, rel=1e-6)
    unlabelled = len(range(0, 70, 4)) if name == "imagenet2012_real" else 0
    assert metrics["count"] == 70 - unlabelled


def test_the_labels_of_real_and_the_classes_of_a_and_r(imagenets):
    real = open_source("imagenet2012_real", "validation", str(imagenets))
    labels = {int(np.asarray(Image.open(io.BytesIO(data))).flat[0]): label for data, label in real}
    assert labels == {i: tuple(range(i, i + i % 4)) for i in range(70)}
    assert real.multi_label
    assert real.class_names == tuple(synsets())
    for name in SETS:
        chosen = open_source(name, None, str(imagenets)).candidates
        assert chosen == candidates(name)
        assert (chosen is None) == (name not in ("imagenet_a", "imagenet_r"))
        assert chosen is None or (len(chosen) == 200 and list(chosen) == sorted(set(chosen)) and chosen[-1] < 1000)


def test_several_labels_are_not_trained_on(imagenets, tmp_path):
    data = DataConfig(name="imagenet2012_real", train_split="validation", data_dir=str(imagenets))
    assert "several labels an image" in refusal(train, Config(data=data, workdir=str(tmp_path)))


def test_the_command_evaluates_weights_and_runs_on_other_data(imagenets, weights, tmp_path, capsys):
    path, _ = weights
    where = ["--data-dir", str(imagenets)]
    assert cli.main(["evaluate", "--weights", str(path), "--data", "imagenet_v2", "--split", "test[:9]", *where]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{path}, data 'imagenet_v2', split 'test[:9]': top-1 ")
    assert "of 9), top-5" in printed
    for args, message in (
        (["--weights", str(path)], "--weights: say on which data, such as --data imagenet2012"),
        (["--model", "eca_resnet18"], "--model: goes with --weights FILE"),
        (
            ["--weights", str(path), "--data", "digits"],
            "'digits', split 'test', has other classes than ImageNet, which",
        ),
        (["--weights", str(path), "--data", "imagenet_a", "--model", "resnet50", *where], "is 'resnet50'"),
    ):
        assert cli.main(["evaluate", *args]) == 2
        assert message in capsys.readouterr().err


def test_weights_of_as_many_classes_as_the_data_are_taken_for_theirs(imagenets, tmp_path):
    model = create_model("eca_resnet18", num_classes=10, width_multiplier=0.125, small_stem=True, rngs=nnx.Rngs(0))
    model.preprocess = dataclasses.replace(TINY, image_size=8, eval_resize=8)
    path = tmp_path / "model.safetensors"
    write_safetensors(path, to_state_dict(model, NATIVE), own_metadata(model))
    task, metrics = evaluate_weights(str(path), "digits", split="test[:9]")
    assert task == Classification(model.preprocess)
    assert metrics["count"] == 9
    message = refusal(evaluate_weights, str(path), "imagenet_v2", data_dir=str(imagenets))
    assert message == f"data set 'imagenet_v2' has 1000 classes, the weights {path} have 10"
