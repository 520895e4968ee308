"""What a run says before its first row, and the warm-up that it begins with and keeps."""

import contextlib
import dataclasses
import io
import json

import pytest

from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.errors import EcaJaxError
from eca_jax.runs.checkpoint import Checkpoints
from eca_jax.tasks import Classification
from eca_jax.training.announce import _describe_crop
from eca_jax.training.loop import train
from eca_jax.training.start import check_pretrained

CONFIG = Config(
    data=DataConfig("digits", train_split="train[:640]", eval_split="test[:32]", num_threads=1),
    task=Classification(PreprocessConfig(image_size=8, eval_resize=8, augment="pad_and_crop", pad=1, flip=False)),
    optim=OptimConfig(schedule="constant"),
    batch_size=64,
    log_every=5,
)
WARM_UP = "warm-up: 1 steps (0.1 epochs) instead of the 20 of optim.warmup_epochs 2, which are more than the run had"


pytestmark = pytest.mark.usefixtures("small_backbones")


def configure(workdir, warmup_epochs: float, epochs: int) -> Config:
    optim = dataclasses.replace(CONFIG.optim, warmup_epochs=warmup_epochs)
    return dataclasses.replace(CONFIG, workdir=str(workdir), model=ModelConfig("eca_tiny"), optim=optim, epochs=epochs)


def saved(workdir, step: int) -> dict:
    with Checkpoints(workdir, score="top1", read_only=True) as checkpoints:
        return checkpoints.read_run(step)


@pytest.fixture(scope="module")
def short(tmp_path_factory, data_dir):
    """One epoch of ten steps with a warm-up of two epochs: its directory, and what it printed."""
    workdir = tmp_path_factory.mktemp("short") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        train(configure(workdir, 2, 1))
    return workdir, out.getvalue()


def test_a_run_says_what_it_is_before_its_first_row(short):
    """Parameters: convolutions 432, 4,608 and 18,432, norms 32, 64 and 128, attention 3, classifier 650."""
    workdir, said = short
    assert said.splitlines()[:7] == [
        "model: eca_tiny, 24,349 parameters, float32",
        "data: digits, 640 images to train on and 32 held out, 10 classes, 8 x 8 pixels",
        "devices: 8 x cpu, batch 64 = 8 a device",
        "steps: 10 in 1 epochs",
        f"workdir: {workdir}",
        f"{WARM_UP} when it began",
        "compiling the training step",
    ]
    assert said.splitlines()[7].startswith("step 5/10, ")


def test_an_evaluation_of_the_middle_of_each_image_alone_is_noted():
    config = configure("run", 0, 1)
    assert _describe_crop(config) == []
    preprocess = dataclasses.replace(config.task.preprocess, image_size=64, eval_resize=235)
    (line,) = _describe_crop(dataclasses.replace(config, task=dataclasses.replace(config.task, preprocess=preprocess)))
    assert line.startswith(
        "note: evaluations see the middle 27% of an image's short side, preprocess.image_size 64 of "
    )


def test_a_warm_up_that_does_not_fit_is_shortened_and_kept(short, tmp_path, capsys):
    """Continued with more epochs it ends as a run that was given the shorter warm-up from the start."""
    workdir, _ = short
    for asked, epochs in ((2, 1), (2, 2), (0.1, 3)):
        assert train(configure(workdir, asked, epochs)).finished
        assert json.loads((workdir / "config.json").read_text())["optim"]["warmup_epochs"] == 0.1
        assert saved(workdir, 10 * epochs)["warmup_asked"] == 2
        assert saved(workdir, 10 * epochs)["config"]["optim"]["warmup_epochs"] == 0.1
    said = capsys.readouterr().out
    assert said.count(WARM_UP) == 2  # nothing is said where nothing is left to do
    assert f"continuing {workdir} at step 10 of 20" in said
    with pytest.raises(EcaJaxError, match=r"optim\.warmup_epochs: 0\.1 -> 1\.5\. Give the same values"):
        train(configure(workdir, 1.5, 9))
    train(configure(tmp_path / "at_once", 0.1, 3))
    assert (workdir / "metrics.jsonl").read_text() == (tmp_path / "at_once/metrics.jsonl").read_text()
    assert "warmup_asked" not in saved(tmp_path / "at_once", 30)
    assert "warm-up" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pretrained", "message"),
    [
        ("./nowhere.pth", r"model\.pretrained: there is no file or directory \./nowhere\.pth"),
        ("", r"model\.pretrained: expected a file, a run or a name on the hub, got ''"),
    ],
)
def test_weights_that_are_not_there_are_refused_before_a_run_is_made(tmp_path, data_dir, pretrained, message):
    config = configure(tmp_path / "run", 0, 1)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained=pretrained))
    with pytest.raises(EcaJaxError, match=message):
        train(config)
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_does_not_need_the_weights_that_it_began_with(tmp_path):
    config = configure(tmp_path, 0, 1)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained="./nowhere.pth"))
    with pytest.raises(EcaJaxError, match="nowhere"):
        check_pretrained(config)
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    check_pretrained(config)
