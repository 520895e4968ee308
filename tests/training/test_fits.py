"""What does not fit into memory is refused in a line, by arithmetic or by the compiler's plan; nothing else is."""

import dataclasses

import jax
import pytest

from eca_jax import cli, memory
from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from eca_jax.memory import GIB, Room, device_room, needed_by
from eca_jax.sharding import make_mesh, sharded
from eca_jax.tasks import Classification
from eca_jax.training import loop
from eca_jax.training.fits import check_arithmetic, least_bytes, remedies
from eca_jax.training.loop import train
from eca_jax.training.program import build_program, compile_step

CONFIG = Config(
    data=DataConfig("digits", train_split="train[:64]", eval_split="test[:32]", num_threads=1),
    task=Classification(PreprocessConfig(image_size=8, eval_resize=8, augment="pad_and_crop", pad=1, flip=False)),
    optim=OptimConfig(schedule="constant"),
    batch_size=64,
    epochs=1,
)
DATA = {"num_examples": 64, "num_classes": 10}


pytestmark = pytest.mark.usefixtures("small_backbones")


def configure(workdir="", model=None, **fields) -> Config:
    return dataclasses.replace(CONFIG, workdir=str(workdir), model=ModelConfig("eca_tiny", **(model or {})), **fields)


@pytest.fixture(scope="module")
def planned() -> int:
    """Bytes that the step takes of the free memory on the 8 devices, all told."""
    program = build_program(configure(), make_mesh(), **DATA)
    batch = sharded(CONFIG.task.abstract_batch(64, 10), program.batch_sharding)
    room = device_room(jax.devices())
    return needed_by(compile_step(program.train_step, program.abstract_state, batch), room)


def test_what_the_compiler_plans_is_compared_before_the_first_step(tmp_path, monkeypatch, planned):
    config = configure(tmp_path / "run")
    monkeypatch.setattr(memory, "_available", lambda root: planned - 1)
    with pytest.raises(EcaJaxError, match=r"^out of memory: a training step of eca_tiny on 64 images of 8 x 8 pixels "):
        train(config)
    assert (tmp_path / "run/metrics.jsonl").read_text() == ""
    monkeypatch.setattr(memory, "_available", lambda root: planned)
    assert train(config).finished


def test_absurd_sizes_are_refused_before_anything_is_compiled_or_written(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "compile_step", lambda *args: pytest.fail("compiled"))
    huge = PreprocessConfig(image_size=10_000_000, eval_resize=10_000_000)
    config = configure(tmp_path / "run", task=Classification(huge))
    with pytest.raises(EcaJaxError, match=r"in 1 threads, loading a training step.*needs at least 17,881,393\.43 GiB"):
        train(config)
    monkeypatch.setattr(memory, "_available", lambda root: 2**20)
    with pytest.raises(
        EcaJaxError, match=r"a training step .* needs at least 1\.\d MiB, and this machine has 1\.0 MiB free"
    ):
        train(dataclasses.replace(config, task=CONFIG.task))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model": {"rematerialise": True, "dtype": "bfloat16"}},
        {"optim": OptimConfig(accumulate=4, ema_decay=0.9)},
    ],
)
def test_the_arithmetic_is_a_lower_bound_of_the_plan(fields):
    """With large images, of which the stages' outputs are most of it."""
    task = Classification(PreprocessConfig(image_size=64, eval_resize=64))
    config = configure(task=task, **fields)
    program = build_program(config, make_mesh(), **DATA)
    batch = config.task.abstract_batch(config.batch_size, 10)
    step = compile_step(program.train_step, program.abstract_state, sharded(batch, program.batch_sharding))
    least, plan = least_bytes(config, program, batch, program.batch_sharding), needed_by(step, Room(GIB, "a chip"))
    assert plan / 20 < least < plan


def test_the_bytes_of_the_arithmetic_by_hand():
    """eca_tiny on 8 x 8: outputs of 16 channels at 8 x 8, 32 at 4 x 4, 64 at 2 x 2, on each of 8 devices 8 images."""
    program = build_program(configure(), make_mesh(), **DATA)
    batch = CONFIG.task.abstract_batch(64, 10)
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.abstract_state))
    examples = 8 * (8 * 8 * 3 + 4 + 4)  # image, label, mask
    stages = 8 * 4 * (16 * 8 * 8 + 32 * 4 * 4 + 64 * 2 * 2)
    assert least_bytes(configure(), program, batch, program.batch_sharding) == state + examples + stages


def test_only_remedies_that_are_left_are_named():
    assert [remedy.split()[-1] for remedy in remedies(configure())[:3]] == [
        "--optim.accumulate",
        "bfloat16",
        "--model.rematerialise",
    ]
    done = configure(model={"rematerialise": True, "dtype": "bfloat16"})
    assert len(remedies(done)) == len(remedies(configure())) - 2


def test_memory_that_runs_out_in_a_step_is_the_same_line(tmp_path, monkeypatch):
    def exhausted(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17 bytes.\n@ 0x1")

    monkeypatch.setattr(loop, "compile_step", lambda *args: exhausted)
    monkeypatch.setattr(loop, "check_plan", lambda *args: None)
    with pytest.raises(EcaJaxError, match=r"none is left for a training step .*\(Out of memory .* 17 bytes\.\); this"):
        train(configure(tmp_path / "run"))


def test_a_chip_whose_runtime_says_nothing_refuses_nothing(monkeypatch):
    monkeypatch.setattr("eca_jax.training.fits.device_room", lambda devices: None)
    program = build_program(configure(), make_mesh(), **DATA)
    check_arithmetic(configure(), program, program.batch_sharding, num_classes=10)


def test_evaluations_and_predictions_are_checked_alike(tmp_path, monkeypatch, capsys):
    """64 images of 32 pixels are 0.2 MB, and take 5 MB in the network."""
    config = configure(tmp_path / "run", task=Classification(PreprocessConfig(image_size=32, eval_resize=32)))
    train(config)
    evaluation = "an evaluation of eca_tiny on 64 images of 32 x 32 pixels needs"
    image = tmp_path / "digit.png"
    image.write_bytes(open_source("digits", "test")[0][0])
    for available, command, message in (
        (2**17, ["evaluate"], "in 1 threads, loading an evaluation of eca_tiny"),
        (2**20, ["evaluate"], f"out of memory: {evaluation}"),
        (2**15, ["predict", str(image)], "out of memory: a prediction on an image of 32 x 32 pixels needs"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(memory, "_available", lambda root, n=available: n)
            assert cli.main([*command, "--run", config.workdir]) == 2
        assert message in capsys.readouterr().err
        assert cli.main([*command, "--run", config.workdir]) == 0
