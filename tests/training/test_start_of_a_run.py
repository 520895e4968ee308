"""What a run says before its first row."""

import contextlib
import dataclasses
import io

import pytest

from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.tasks import Classification
from eca_jax.training.loop import train
from tests.tiny import brought_from_outside, register

CONFIG = Config(
    data=DataConfig("digits", train_split="train[:640]", eval_split="test[:32]", num_threads=1),
    task=Classification(PreprocessConfig(image_size=8, eval_resize=8, augment="pad_and_crop", pad=1, flip=False)),
    optim=OptimConfig(schedule="constant"),
    batch_size=64,
    log_every=5,
)


@pytest.fixture(scope="module", autouse=True)
def smallest_backbone():
    with brought_from_outside():
        register()
        yield


def configure(workdir, warmup_epochs: float, epochs: int) -> Config:
    optim = dataclasses.replace(CONFIG.optim, warmup_epochs=warmup_epochs)
    return dataclasses.replace(CONFIG, workdir=str(workdir), model=ModelConfig("eca_tiny"), optim=optim, epochs=epochs)


@pytest.fixture(scope="module")
def short(tmp_path_factory, data_dir):
    """One epoch of ten steps: its directory, and what it printed."""
    workdir = tmp_path_factory.mktemp("short") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        train(configure(workdir, 0, 1))
    return workdir, out.getvalue()


def test_a_run_says_what_it_is_before_its_first_row(short):
    """Parameters: convolutions 432, 4,608 and 18,432, norms 32, 64 and 128, attention 3, classifier 650."""
    workdir, said = short
    assert said.splitlines()[:6] == [
        "model: eca_tiny, 24,349 parameters, float32",
        "data: digits, 640 images to train on and 32 held out, 10 classes, 8 x 8 pixels",
        "devices: 8 x cpu, batch 64 = 8 a device",
        "steps: 10 in 1 epochs",
        f"workdir: {workdir}",
        "compiling the training step",
    ]
    assert said.splitlines()[6].startswith("step 5/10, ")
