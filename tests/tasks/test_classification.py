"""Weights of classes: the loss by NumPy, the same step on any number of devices and in any number of parts."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax import cli
from eca_jax.config import Config, ModelConfig, OptimConfig
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from eca_jax.overrides import overridden
from eca_jax.runs.state import Network, TrainState, split
from eca_jax.sharding import batch_sharding, make_mesh
from eca_jax.tasks import Classification
from eca_jax.training.step import make_gradients

PREPROCESS = PreprocessConfig(image_size=8, eval_resize=8, augment="pad_and_crop", pad=1, flip=False)
WEIGHTS = (1.0, 2.0, 0.5, 0.0, 30.0)


class Linear(nnx.Module):
    """(b, h, w, 3) -> the mean colour times a matrix."""

    def __init__(self, matrix):
        self.matrix = matrix

    @property
    def architecture(self):
        return types.SimpleNamespace(num_classes=self.matrix.shape[1])

    def __call__(self, x, *, rngs=None):
        return x.mean((1, 2)) @ self.matrix[...]


def batch_of(rng, size: int) -> dict[str, np.ndarray]:
    """Labels of all five classes; the parts of it that a step may take differ in their weights."""
    return {
        "image": rng.integers(256, size=(size, 8, 8, 3), dtype=np.uint8),
        "label": np.sort(np.arange(size, dtype=np.int32) % len(WEIGHTS)),
        "mask": np.ones(size, np.float32),
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_numpys(rng, smoothing):
    """The log has the loss that is differentiated; an evaluation's has no weights, as it has no smoothing."""
    task = Classification(PREPROCESS, label_smoothing=smoothing, class_weights=WEIGHTS)
    matrix, batch = rng.normal(size=(3, 5)), batch_of(rng, 8)
    mean, std = np.float32(PREPROCESS.mean), np.float32(PREPROCESS.std)
    z = ((batch["image"] / 255 - mean) / std).mean((1, 2)) @ matrix
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    weights, right = np.array(WEIGHTS), np.eye(5)[batch["label"]]
    targets = (1 - smoothing) * right + smoothing / 5
    expected = -(weights * targets * log_p).sum() / weights[batch["label"]].sum()
    with jax.enable_x64(True):
        model, key = Linear(jnp.asarray(matrix)), jax.random.key(0)
        loss, sums = jax.jit(lambda batch: task.loss(model, task.whole_batch(batch), key, jnp.float64))(batch)
        totals, _ = jax.jit(lambda batch: task.evaluate(model, batch, jnp.float64, None))(batch)
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert float(sums["loss"]) == pytest.approx(8 * expected, rel=1e-6)
    assert float(totals["loss"]) == pytest.approx(-(right * log_p).sum(), rel=1e-6)


def test_gradients_are_the_same_on_8_devices_and_in_parts(rng):
    """In float64; labels are sorted, so that devices and parts differ in the weight of what they hold."""
    task = Classification(PREPROCESS, label_smoothing=0.1, class_weights=WEIGHTS)
    with jax.enable_x64(True):
        config = Config(model=ModelConfig(dtype="float64"), task=task, batch_size=32)
        graphdef, params, batch_stats = split(Linear(nnx.Param(jnp.asarray(rng.normal(size=(3, 5))))))
        state = TrainState(jnp.int32(0), params, batch_stats, (), {}, jnp.int32(0), jnp.int32(-1))
        batch, found = batch_of(rng, 32), []
        for devices, parts in ((1, 1), (8, 1), (8, 4)):
            one = dataclasses.replace(config, optim=OptimConfig(accumulate=parts))
            shares = batch_sharding(make_mesh(jax.devices()[:devices]), 32)
            gradients = jax.jit(make_gradients(one, Network(graphdef, graphdef)))
            (loss, (_, sums)), grads = gradients(state, jax.device_put(batch, shares))
            found.append(jax.device_get((loss, sums["loss"], grads)))
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12), found[0], other)
        assert other[0] == pytest.approx(found[0][0], rel=1e-12)
    assert found[0][1] == pytest.approx(32 * found[0][0], rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_weights": (1.0, -1.0)}, r"class_weights: expected numbers of 0 or more, got \(1.0, -1.0\)"),
        ({"class_weights": (1.0, float("nan"))}, r"class_weights: expected numbers of 0 or more, got \(1.0, nan\)"),
        ({"class_weights": (0.0, 0.0)}, "class_weights: all are 0, so that nothing would be trained"),
        ({"class_weights": (1.0, 2.0), "loss_function": "sigmoid"}, "is of loss_function softmax, which is sigmoid"),
    ],
)
def test_weights_that_cannot_work_are_refused(fields, message):
    with pytest.raises(EcaJaxError, match=message):
        Classification(**fields)


def test_weights_are_one_for_each_class(rng, tmp_path, capsys, data_dir, monkeypatch):
    monkeypatch.setattr("eca_jax.sharding.initialize_cluster", lambda config: None)  # JAX has started in this process
    task, digits = Classification(PREPROCESS, class_weights=(1, 2, 0.5)), open_source("digits", "test")
    message = r"class_weights: expected one for each of the 10 classes \(0, 1, 2, 3, 4, 5, 6, 7, 8, 9\), got 3"
    with pytest.raises(EcaJaxError, match=message):
        task.check_data(digits, digits)
    with pytest.raises(EcaJaxError, match=message):  # where no data set is opened: eca-jax precompile
        task.loss(Linear(rng.normal(size=(3, 10))), batch_of(rng, 8), jax.random.key(0), jnp.float32)
    assert cli.train_main(["--workdir", str(tmp_path / "run"), "--class-weights", "1", "2", "0.5"]) == 2
    assert "error: class_weights: expected one for each of the 10 classes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_weights_on_the_command_line():
    def parsed(*values: str) -> Config:
        return overridden("digits", ["--class-weights", *values], prog="train.py", description="")

    assert parsed("1", "2", "0.5").task.class_weights == (1.0, 2.0, 0.5)
    with pytest.raises(EcaJaxError, match="--class-weights: expected numbers, got '1' 'x'"):
        parsed("1", "x")
