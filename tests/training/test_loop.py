"""A run from start to end in this process: what it writes, keeps, refuses, and when it reads from the devices."""

import dataclasses
import json
import os
import pathlib
import signal

import jax
import numpy as np
import pytest
from flax import nnx
from jax._src.array import ArrayImpl

from eca_jax.config import CheckpointConfig, Config, DataConfig, ModelConfig, OptimConfig, load_config
from eca_jax.convert.files import write_safetensors
from eca_jax.convert.pretrained import own_metadata
from eca_jax.convert.state_dict import NATIVE, to_state_dict
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError
from eca_jax.models.config import build_model
from eca_jax.runs.checkpoint import Checkpoints
from eca_jax.runs.run import load_run
from eca_jax.runs.writers import Writer
from eca_jax.sharding import make_mesh
from eca_jax.tasks import Classification
from eca_jax.training import evaluate, loop
from eca_jax.training.evaluate import evaluate_run
from eca_jax.training.loop import train
from eca_jax.training.program import InFlight, build_program
from tests.commands import ROOT
from tests.training.test_profile import traces

CONFIG = Config(
    model=ModelConfig(name="eca_resnet18", small_stem=True, width_multiplier=0.125),
    data=DataConfig(name="digits", train_split="train[:320]", eval_split="test[:100]", num_threads=1),
    task=Classification(PreprocessConfig(image_size=8, eval_resize=8, augment="pad_and_crop", pad=1, flip=False)),
    optim=OptimConfig(schedule="cosine", warmup_epochs=1),
    batch_size=64,
    epochs=3,
    log_every=4,
)
# Its rate does not depend on the number of epochs, so runs of any length are one program, which compiles once.
CONSTANT = OptimConfig(schedule="constant")


# The loop is the same for every network, and this one compiles in a second.
pytestmark = pytest.mark.usefixtures("small_backbones")


def configure(workdir: pathlib.Path, **fields) -> Config:
    model = ModelConfig("eca_tiny")
    return dataclasses.replace(CONFIG, **{"workdir": str(workdir), "model": model, **fields})


def rows(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """A complete run of three epochs."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, train(configure(workdir))


def test_a_run_ends_with_an_evaluation_and_a_checkpoint(finished):
    workdir, result = finished
    assert (result.step, result.total_steps, result.new_steps) == (15, 15, 15)
    assert result.finished
    assert result.checkpoint.is_dir()
    assert [(row["kind"], row["step"]) for row in rows(workdir)] == [
        ("train", 4),
        ("eval", 5),
        ("train", 8),
        ("eval", 10),
        ("train", 12),
        ("train", 15),
        ("eval", 15),
    ]
    assert rows(workdir)[-1] == {"kind": "eval", "step": 15, "epoch": 3.0, **result.evaluation}
    assert result.evaluation["count"] == 100
    assert list((workdir / "tensorboard").iterdir())
    assert json.loads((workdir / "config.json").read_text())["model"]["name"] == "eca_tiny"


def test_learning_rate_in_the_log_is_the_one_of_the_step(finished):
    workdir, _ = finished
    rates = {row["step"]: row["lr"] for row in rows(workdir) if row["kind"] == "train"}
    assert rates[4] == pytest.approx(0.1 * 4 / 5)  # warm-up over the first 5 steps
    assert rates[12] == pytest.approx(0.1 * (1 + np.cos(np.pi * (11 - 5) / 10)) / 2)


def test_a_run_that_is_traced_is_the_run_that_is_not(finished, tmp_path, capsys):
    """From the first step on, whose compilation is not in the trace."""
    workdir, _ = finished
    train(configure(tmp_path), profile=range(3))
    assert traces(tmp_path) == [[0, 1, 2]]
    assert not traces(workdir)
    assert f"profile: steps 0:3 are in {tmp_path}/tensorboard, for TensorBoard's profiler" in capsys.readouterr().out
    assert rows(tmp_path) == rows(workdir)
    ours, plain = (jax.tree.leaves(nnx.as_pure(nnx.state(load_run(run)[0]))) for run in (tmp_path, workdir))
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_finished_run_has_nothing_left_to_do_and_goes_on_when_asked(finished):
    workdir, result = finished
    before = rows(workdir)
    again = train(configure(workdir))
    assert (again.new_steps, again.step, again.evaluation) == (0, 15, result.evaluation)
    longer = train(configure(workdir, epochs=4))
    assert (longer.new_steps, longer.step) == (5, 20)
    assert rows(workdir)[: len(before)] == before


def test_evaluate_and_load_give_what_training_said(finished):
    workdir, result = finished
    step, task, metrics = evaluate_run(str(workdir), which="15")
    assert step == 15
    assert task == CONFIG.task
    assert metrics == pytest.approx(result.evaluation)
    model, config, class_names = load_run(workdir, "15")
    assert config.workdir == str(workdir)
    assert class_names == tuple("0123456789")
    assert model(np.zeros((1, 8, 8, 3), np.float32)).shape == (1, 10)
    assert model.bn1.use_running_average


def test_the_newest_and_the_best_checkpoint_are_kept(tmp_path):
    config = configure(tmp_path, epochs=6, optim=CONSTANT, checkpoint=CheckpointConfig(keep=2))
    train(config)
    scores = {row["step"]: row["top1"] for row in rows(tmp_path) if row["kind"] == "eval"}
    best = max(scores, key=lambda step: (scores[step], step))
    with Checkpoints(tmp_path, score="top1", read_only=True) as checkpoints:
        assert checkpoints.steps() == sorted({25, 30, best})
        assert checkpoints.best() == best
        assert checkpoints.evaluation(30)["top1"] == scores[30]


def test_nothing_is_read_from_the_devices_between_log_rows(tmp_path, monkeypatch):
    """The loop forbids transfers itself, which accelerators obey; on CPU the host's requests for values are counted."""
    steps, reads = [0], []
    value, advance = ArrayImpl._value, Writer.advance
    monkeypatch.setattr(ArrayImpl, "_value", property(lambda array: (reads.append(steps[-1]), value.fget(array))[1]))
    monkeypatch.setattr(Writer, "advance", lambda self: (steps.append(steps[-1] + 1), advance(self))[1])
    train(configure(tmp_path, eval_every_epochs=3, checkpoint=CheckpointConfig(every_epochs=3)))
    assert steps[-1] == 15
    during = {step for step in reads if step > 0}
    assert during == {4, 8, 12, 15}


def test_the_loop_forbids_transfers_to_the_host(tmp_path, monkeypatch):
    seen = []
    compile_step = loop.compile_step

    def spying(*args):
        train_step = compile_step(*args)

        def spied(*step_args):
            seen.append(jax.config.jax_transfer_guard_device_to_host)
            return train_step(*step_args)

        spied.memory_analysis, spied.output_shardings = train_step.memory_analysis, train_step.output_shardings
        return spied

    monkeypatch.setattr(loop, "compile_step", spying)
    train(configure(tmp_path, epochs=1, optim=CONSTANT))
    assert seen == ["disallow"] * 5


def test_steps_that_are_not_finite_are_skipped_up_to_a_limit(tmp_path, capsys, caplog):
    """After one step at a rate of 1e30 no other is finite. Log rows at 4, 8, 10, evaluations at 5 and 10."""

    def exploding(name: str, limit: int) -> Config:
        optim = OptimConfig(lr=1e30, schedule="constant", max_skipped=limit)
        return configure(tmp_path / name, optim=optim, epochs=2)

    message = (
        r"not finite in 4 steps, the last at step 5 \(learning rate 1e\+30\), and optim.max_skipped is 3; there is no"
    )
    with pytest.raises(EcaJaxError, match=message):
        train(exploding("stops", 3))

    assert train(exploding("goes on", 9)).finished
    found = [(row["step"], row["skipped"], row["loss"]) for row in rows(tmp_path / "goes on") if "skipped" in row]
    assert [(step, skipped) for step, skipped, _ in found] == [(4, 3), (8, 7), (10, 9)]
    assert found[0][2] > 0  # of step 1
    assert [loss for *_, loss in found[1:]] == [None, None]
    said = capsys.readouterr().out
    assert said.count(": no step since the last row was finite, lr 1e+30") == 2
    assert "nan%" not in said
    assert [record.name for record in caplog.records if "tensorboardX" in record.name] == []


def test_the_last_good_checkpoint_is_named_and_kept(tmp_path):
    train(configure(tmp_path, epochs=1, optim=CONSTANT))
    # The rate belongs to the configuration of the checkpoint, so the run is made to explode from inside its state.
    with Checkpoints(tmp_path, keep=2, score="top1") as checkpoints:
        program = build_program(configure(tmp_path), make_mesh(), num_examples=320, num_classes=10)
        state = checkpoints.read_state(5, program.abstract_state)
        run = checkpoints.read_run(5)
        import jax

        bad = dataclasses.replace(state, step=state.step + 1, params=jax.tree.map(lambda p: p * 1e38, state.params))
        checkpoints.save(6, bad, run, None)
    message = r"not finite in 2 steps, the last at step 8 .* the last good checkpoint is .*/checkpoints/6"
    with pytest.raises(EcaJaxError, match=message):
        train(configure(tmp_path, epochs=2, optim=dataclasses.replace(CONSTANT, max_skipped=0)))


@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_the_run_goes_on(tmp_path, monkeypatch, number):
    advance = Writer.advance
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]

    def interrupt(self):
        advance(self)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(Writer, "advance", interrupt)
    stopped = train(configure(tmp_path))
    assert (stopped.step, stopped.finished, stopped.evaluation, stopped.signal) == (1, False, None, number)
    monkeypatch.undo()
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before
    result = train(configure(tmp_path))
    assert (result.step, result.new_steps) == (15, 14)


def test_several_epochs_may_end_in_one_step(tmp_path):
    data = dataclasses.replace(CONFIG.data, train_split="train[:24]")
    # Steps end within epochs 3, 6 and 9.
    train(configure(tmp_path, data=data, optim=CONSTANT, epochs=9, eval_every_epochs=2))
    assert [row["step"] for row in rows(tmp_path) if row["kind"] == "eval"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 60}, "batch_size 60 is not a multiple of the 8 devices: use 56"),
        ({"batch_size": 1024}, "batch_size 1024 is more than the 960 examples of 3 epochs"),
        ({"data": DataConfig(name="digits", eval_split="val")}, "unknown split 'val' in 'val'"),
        ({"data": DataConfig(name="digit")}, "unknown data set 'digit'. Did you mean digits"),
        ({"sharding_rules": (("nothing", ("data",)),)}, "no parameter matches nothing"),
        ({"sharding_rules": (("fc/kernel", ("model",)),)}, "sharding rule 'fc/kernel'"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(tmp_path, fields, message):
    with pytest.raises(EcaJaxError, match=message):
        train(configure(tmp_path / "run", **fields))
    assert not (tmp_path / "run").exists()


def test_a_configuration_that_differs_from_the_checkpoint_is_refused(finished):
    workdir, _ = finished
    changed = configure(workdir, seed=1, epochs=9, optim=dataclasses.replace(CONFIG.optim, lr=0.2))
    with pytest.raises(EcaJaxError, match=r"differs from the checkpoint .*: optim.lr: 0.1 -> 0.2; seed: 0 -> 1\. Give"):
        train(changed)


def test_a_foreign_directory_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(EcaJaxError, match=r"holds thesis.tex and no config.json.*another|holds thesis.tex"):
        train(configure(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(EcaJaxError, match=r"is no run of eca_jax: it has no config.json"):
        evaluate_run(str(tmp_path))
    with pytest.raises(EcaJaxError, match="there is no run directory"):
        evaluate_run(str(tmp_path / "nowhere"))


def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(finished):
    workdir, _ = finished
    with pytest.raises(EcaJaxError, match=r"no checkpoint of step 3; there are \["):
        load_run(workdir, "3")
    with pytest.raises(EcaJaxError, match="expected 'latest', 'best' or a step, got 'newest'"):
        load_run(workdir, "newest")


def test_a_damaged_checkpoint_is_named(tmp_path):
    result = train(configure(tmp_path, epochs=1, optim=CONSTANT))
    for file in (result.checkpoint / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(EcaJaxError, match=r"cannot read the checkpoint .*/checkpoints/5: it is damaged"):
        evaluate_run(str(tmp_path))


@pytest.mark.slow
def test_a_run_starts_from_pretrained_weights_with_a_new_head_and_frozen_stages(tmp_path, data_dir):
    """Fine-tuning on a directory of images: configs/finetune.py, small."""
    first = tmp_path / "first.safetensors"
    fresh = build_model(CONFIG.model, 10, nnx.Rngs(0))
    write_safetensors(first, to_state_dict(fresh, NATIVE), own_metadata(fresh))
    source = open_source("digits", "train[:200]")
    for number, (image, label) in enumerate(source):
        if label < 3:
            folder = tmp_path / "images" / ("train" if number % 4 else "val") / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.png").write_bytes(image)
    config = configure(
        tmp_path / "run",
        model=dataclasses.replace(CONFIG.model, pretrained=str(first), skip=("fc.*",)),
        data=DataConfig(f"folder:{tmp_path}/images", eval_split="val", num_threads=1),
        optim=dataclasses.replace(load_config(str(ROOT / "configs/finetune.py")).optim, warmup_epochs=0),
        batch_size=8,
        epochs=1,
    )
    assert train(config).finished
    model, _, names = load_run(tmp_path / "run")
    assert names == ("class0", "class1", "class2")
    assert model.architecture.num_classes == 3
    old, new = (dict(nnx.to_flat_state(nnx.state(m))) for m in (fresh, model))
    same = {".".join(map(str, path)): np.array_equal(old[path], new[path]) for path in old if path[0] != "fc"}
    assert {name for name, equal in same.items() if equal} == {
        name for name in same if name.startswith(("conv1.", "bn1.", "layer1."))
    }

    wider = dataclasses.replace(config.model, width_multiplier=0.25)
    with pytest.raises(EcaJaxError, match=r"model.pretrained: .* is of .*width_multiplier=0.125.*, the configuration"):
        train(dataclasses.replace(config, workdir=str(tmp_path / "other"), model=wider))


def test_the_next_batch_crosses_over_while_a_step_runs(tmp_path, data_dir, monkeypatch):
    """Double buffering: before the host waits for step k, it has put batch k + 1 and k + 2 onto the devices."""
    events, train_batches = [], loop.train_batches

    def recorded(*args, **options):
        for n, batch in enumerate(train_batches(*args, **options)):
            events.append(("put", n))
            yield batch

    class Loss:
        def __init__(self, n: int):
            self._n = n

        def block_until_ready(self):
            events.append(("waited", self._n))

    class Recorded(InFlight):
        _added = 0

        def add(self, result):
            super().add(Loss(self._added))
            self._added += 1

    monkeypatch.setattr(loop, "train_batches", recorded)
    for module in (loop, evaluate):
        monkeypatch.setattr(module, "InFlight", Recorded)
    train(configure(tmp_path, epochs=1, log_every=100))
    waited = [n for event, n in events if event == "waited"]
    assert waited == [0, 1, 2]  # of 5 steps; the 2 batches of the evaluation are not waited for
    for n in waited:
        assert events.index(("put", n + 1)) < events.index(("put", n + 2)) < events.index(("waited", n))


@pytest.mark.parametrize("value", ["digits", None, Config])
def test_what_is_no_configuration_is_answered_in_one_line(value):
    with pytest.raises(EcaJaxError, match=r"^train: expected a Config, such as .*load_config\('digits'\), got "):
        train(value)
