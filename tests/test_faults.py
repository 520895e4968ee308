"""Each fault is caused: the run stops with what it has and says why, and goes on to end as one that had none."""

import dataclasses
import errno
import functools
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from eca_jax.config import CheckpointConfig, Config, ModelConfig
from eca_jax.errors import EcaJaxError
from eca_jax.runs.checkpoint import Checkpoints, DamagedCheckpoint, checksums
from eca_jax.runs.directory import claim_directory
from eca_jax.runs.run import load_run, read_run
from eca_jax.runs.writers import Writer
from eca_jax.sharding import make_mesh
from eca_jax.training import evaluate, loop, start
from eca_jax.training.loop import train
from eca_jax.training.program import InFlight, Program
from tests.commands import ROOT, TINY, assert_same_run, environment
from tests.damage import refusal
from tests.test_resume import ARGS
from tests.tiny import brought_from_outside, register
from tests.training.test_loop import CONFIG, rows

# 10 steps; log rows at 4, 8, 10, evaluations at 5 and 10, checkpoints at 3, 5, 6, 9, 10.
SHORT = dataclasses.replace(CONFIG, epochs=2, checkpoint=CheckpointConfig(every_steps=3, keep=3))
BUILD = loop.build_program


@functools.cache
def compiled(config: Config, mesh, **sizes) -> Program:
    return BUILD(config, mesh, **sizes)


@pytest.fixture(autouse=True)
def one_program(monkeypatch):
    """All runs here compute the same: the first compiles it."""

    def build(config: Config, mesh, **sizes) -> Program:
        return compiled(dataclasses.replace(config, workdir=""), mesh, **sizes)

    monkeypatch.setattr(loop, "build_program", build)


@pytest.fixture(scope="module", autouse=True)
def smallest_backbone():
    """Faults are the same for every network, and this one compiles in a second."""
    with brought_from_outside():
        register()
        yield


def configure(workdir: pathlib.Path) -> Config:
    return dataclasses.replace(SHORT, workdir=str(workdir), model=ModelConfig("eca_tiny"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    train(configure(workdir))
    return workdir


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fault(monkeypatch, owner, name: str, call: int, action=terminate) -> None:
    """The n-th call of a function begins with the action."""
    function, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            action()
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.fixture
def stopped(tmp_path, undisturbed, monkeypatch):
    """A run that was stopped after step 6: it has the checkpoints 3, 5 and 6."""
    with monkeypatch.context() as patch:
        fault(patch, Writer, "advance", 6)
        assert train(configure(tmp_path / "run")).step == 6
    return tmp_path / "run"


def flip(path: pathlib.Path, rng: np.random.Generator, bits: int = 1) -> None:
    data = bytearray(path.read_bytes())
    for position in rng.integers(len(data), size=bits):
        data[position] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def damage_arrays(step: pathlib.Path) -> None:
    largest = max((file for file in step.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    flip(largest, np.random.default_rng(0), bits=20)


# Checkpoints


def test_the_checksum_is_that_of_the_words_on_any_devices(rng):
    a = rng.normal(size=(16, 3, 5)).astype(np.float32)
    words = a.view(np.uint32).ravel().astype(object)
    expected = [sum(words) % 2**32, sum(w * (2 * i + 1) for i, w in enumerate(words)) % 2**32]
    for devices, spec in ((1, ()), (8, ("data",)), (8, ())):
        mesh = make_mesh(jax.devices()[:devices])
        tree = {"a": jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec)))}
        assert checksums(tree) == {"a": f"{expected[0]:08x}{expected[1]:08x}"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_every_bit_counts(rng, dtype):
    sharding = NamedSharding(make_mesh(jax.devices()[:1]), PartitionSpec())
    original = np.asarray(rng.integers(0, 2, (7, 3)), dtype=jnp.dtype(dtype))

    def checksum(array: np.ndarray) -> str:
        return checksums([jax.device_put(array, sharding)])["0"]

    bits = range(8 * original.dtype.itemsize) if dtype != "bool" else (0,)
    seen = {checksum(original)}
    for bit in bits:
        changed = original.copy()
        changed.view(np.uint8).ravel()[-changed.dtype.itemsize + bit // 8] ^= 1 << bit % 8
        seen.add(checksum(changed))
    assert len(seen) == len(bits) + 1
    assert checksum(np.roll(original, 1)) not in seen


def test_damage_in_any_file_is_refused_or_without_effect(undisturbed, tmp_path):
    """Never other numbers, and never an error of Orbax's or TensorStore's."""
    run, rng = shutil.copytree(undisturbed, tmp_path / "run"), np.random.default_rng(0)
    expected, refused = _content(run), 0
    for file in sorted(file for file in (run / "checkpoints" / "10").rglob("*") if file.is_file()):
        data = file.read_bytes()
        for damage in (functools.partial(flip, rng=rng), lambda path: os.truncate(path, path.stat().st_size // 2)):
            damage(file)
            try:
                assert _content(run) == expected, file
            except DamagedCheckpoint:
                refused += 1
            file.write_bytes(data)
    assert refused >= 10
    assert _content(run) == expected


def _content(run: pathlib.Path) -> tuple:
    with Checkpoints(run, score="top1", read_only=True) as checkpoints:
        saved = checkpoints.read_run(10)
        mesh = make_mesh()
        state = checkpoints.read_state(
            10, loop.build_program(configure(run), mesh, num_examples=320, num_classes=10).abstract_state
        )
        return saved, checkpoints.evaluation(10), [leaf.tobytes() for leaf in jax.tree.leaves(jax.device_get(state))]


@pytest.mark.parametrize("what", ["arrays", "configuration", "evaluation"])
def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(stopped, undisturbed, what, capsys):
    if what == "arrays":
        damage_arrays(stopped / "checkpoints" / "6")
    elif what == "configuration":
        flip(stopped / "checkpoints" / "6" / "run" / "metadata", np.random.default_rng(1))
    else:
        shutil.rmtree(stopped / "checkpoints" / "6")
        flip(stopped / "checkpoints" / "5" / "evaluation" / "metadata", np.random.default_rng(1))
    damaged, before = ("5", "3") if what == "evaluation" else ("6", "[3, 5]")
    if what != "evaluation":
        message = refusal(load_run, stopped)
        assert f"checkpoints/{damaged}: it is damaged" in message
        assert message.endswith(f"the others there are of steps {before}")
    capsys.readouterr()

    assert train(configure(stopped)).finished
    warning = capsys.readouterr().err
    assert warning.startswith("warning: cannot read the checkpoint")
    assert f"moved {damaged} to {stopped}/checkpoints-damaged" in warning
    assert (stopped / "checkpoints-damaged" / damaged / "state").is_dir()
    assert_same_run(stopped, undisturbed)


def test_where_no_checkpoint_can_be_read_nothing_is_moved_or_begun_anew(stopped):
    for step in (3, 5, 6):
        damage_arrays(stopped / "checkpoints" / str(step))
    metrics = (stopped / "metrics.jsonl").read_text()
    assert "checkpoints/6: it is damaged" in refusal(train, configure(stopped))
    assert {path.name for path in (stopped / "checkpoints").iterdir()} == {"3", "5", "6"}
    assert (stopped / "metrics.jsonl").read_text() == metrics


KILLED_IN_A_SAVE = """
import os, pathlib, signal, sys
sys.path.insert(0, ".")

def dying(function):
    def wrapped(source, target, *args, **kwargs):
        if pathlib.Path(target).name == "6":
            os.kill(os.getpid(), signal.SIGKILL)
        return function(source, target, *args, **kwargs)
    return wrapped

os.rename, os.replace = dying(os.rename), dying(os.replace)
from eca_jax.cli import train_main
train_main(sys.argv[1:])
"""


def test_a_checkpoint_that_is_all_but_renamed_is_not_seen(tmp_path):
    args = ["--workdir", str(tmp_path), *TINY, *ARGS]
    result = subprocess.run([sys.executable, "-c", KILLED_IN_A_SAVE, *args], cwd=ROOT, env=environment(), timeout=600)
    assert result.returncode == -signal.SIGKILL
    (half,) = [path for path in (tmp_path / "checkpoints").iterdir() if not path.name.isdecimal()]
    assert half.name.startswith("6.")
    assert (half / "state").is_dir()
    with Checkpoints(tmp_path, score="top1", read_only=True) as checkpoints:
        assert checkpoints.steps() == [3, 5]
    assert read_run(tmp_path).step == 5


# SIGTERM


@pytest.mark.parametrize(
    ("owner", "name", "call", "step"),
    [
        pytest.param(start, "open_source", 1, 0, id="start"),
        pytest.param(Checkpoints, "restore_newest", 1, 0, id="restore"),
        pytest.param(InFlight, "add", 1, 1, id="first step"),
        pytest.param(Checkpoints, "save", 1, 4, id="save"),
        pytest.param(evaluate, "eval_batches", 1, 5, id="evaluation"),
        pytest.param(evaluate, "eval_batches", 2, 10, id="last evaluation"),
    ],
)
def test_sigterm_stops_at_once_and_loses_nothing(tmp_path, undisturbed, monkeypatch, owner, name, call, step):
    with monkeypatch.context() as patch:
        fault(patch, owner, name, call)
        result = train(configure(tmp_path))
    assert (result.step, result.signal, result.finished, result.evaluation) == (step, signal.SIGTERM, False, None)
    assert result.checkpoint == (tmp_path / "checkpoints" / str(step) if step else None)
    assert ("eval", step) not in [(row["kind"], row["step"]) for row in rows(tmp_path)]
    assert train(configure(tmp_path)).finished
    assert_same_run(tmp_path, undisturbed)
    assert _kept(tmp_path) == _kept(undisturbed)


def _kept(run: pathlib.Path) -> tuple:
    """The best and the newest checkpoints. (A best that is one no longer is deleted at the next save.)"""
    with Checkpoints(run, score="top1", read_only=True) as checkpoints:
        return checkpoints.best(), {step: checkpoints.evaluation(step) for step in checkpoints.steps()[-3:]}


def test_an_evaluation_that_is_due_survives_being_stopped_again_and_killed(tmp_path, undisturbed, monkeypatch):
    for owner, name, action in (
        (evaluate, "eval_batches", terminate),
        (evaluate, "eval_batches", terminate),
        (Checkpoints, "add_evaluation", lambda: 1 / 0),  # after the row was written
    ):
        with monkeypatch.context() as patch:
            fault(patch, owner, name, 1, action)
            if action is terminate:
                assert train(configure(tmp_path)).step == 5
            else:
                with pytest.raises(ZeroDivisionError):
                    train(configure(tmp_path))
    assert train(configure(tmp_path)).finished
    assert_same_run(tmp_path, undisturbed)
    assert _kept(tmp_path) == _kept(undisturbed)


# Disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MiB: room for the run, whose checkpoints have 0.3."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can be mounted only by root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: pathlib.Path, leaving: int) -> None:
    with (disk / "ballast").open("wb", buffering=0) as file:
        for size in (2**16, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    os.truncate(disk / "ballast", max((disk / "ballast").stat().st_size - leaving, 0))


@pytest.mark.parametrize(
    ("step", "leaving"), [pytest.param(6, 2**16, id="checkpoint"), pytest.param(7, 0, id="metrics")]
)
def test_a_full_disk_stops_the_run_and_loses_nothing(small_disk, undisturbed, monkeypatch, step, leaving):
    run = small_disk / "run"
    with monkeypatch.context() as patch:
        fault(patch, Writer, "advance", step, lambda: fill(small_disk, leaving))
        message = refusal(train, configure(run))
    assert message.startswith(f"workdir: cannot write into {run} (No space left on device; ")
    assert "MiB are free); the checkpoints of steps [3" in message
    assert "are whole. Make room" in message
    assert "No space left" in refusal(train, configure(run)), "and so it says until there is room"
    newest = read_run(run).step
    assert newest >= 3

    (small_disk / "ballast").unlink()
    result = train(configure(run))
    assert result.new_steps == 10 - newest
    assert_same_run(run, undisturbed)


def test_a_checkpoint_that_does_not_fit_ends_the_run_with_one_line(tmp_path, undisturbed, monkeypatch, capfd):
    """Not an epoch later, at the next save, and without what Orbax and TensorStore print of it. As any user."""
    steps, limit, saving = [], resource.getrlimit(resource.RLIMIT_FSIZE), []
    advance, save = Writer.advance, Checkpoints.save

    def advance_or_wait(self) -> None:
        advance(self)
        steps.append(len(steps) + 1)
        if steps[-1] == 3:  # whose checkpoint is the first
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, limit[1]))
        while steps[-1] == 4 and saving[0]():
            time.sleep(0.01)

    monkeypatch.setattr(Writer, "advance", advance_or_wait)
    monkeypatch.setattr(Checkpoints, "save", lambda self, *args: (saving.append(self.saving), save(self, *args)))
    try:
        message = refusal(train, configure(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert steps == [1, 2, 3, 4], "the next save would have been after 5"
    assert "(File too large; the checkpoint of step 3 has up to 0." in message
    assert "the checkpoints of steps (none) are whole. Make room" in message
    assert capfd.readouterr().err == ""
    monkeypatch.undo()
    assert train(configure(tmp_path)).finished
    assert_same_run(tmp_path, undisturbed)


def test_a_disk_that_became_read_only_stops_the_run(small_disk, undisturbed, monkeypatch):
    run = small_disk / "run"
    with monkeypatch.context() as patch:
        fault(patch, Writer, "advance", 6)
        train(configure(run))
    for how in ("ro", "rw"):
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True)
        if how == "ro":
            message = refusal(train, configure(run))
            assert message.startswith(f"workdir: cannot write into {run} (Read-only file system; ")
            assert read_run(run).step == 6
    train(configure(run))
    assert_same_run(run, undisturbed)


def test_a_directory_that_may_not_be_written_stops_the_run(tmp_path, undisturbed, monkeypatch):
    """Caused at the call: nothing is forbidden to root, who may run this test."""

    def forbidden() -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "config.json"))

    fault(monkeypatch, os, "replace", 1, forbidden)
    message = refusal(train, configure(tmp_path))
    assert message.startswith(f"workdir: cannot write into {tmp_path} (Permission denied; ")


def test_an_address_is_no_directory():
    with pytest.raises(EcaJaxError, match=r"workdir: gs://bucket/run is an address; expected a directory: mount"):
        train(dataclasses.replace(SHORT, workdir="gs://bucket/run"))
    with pytest.raises(EcaJaxError, match=r"workdir: s3:/bucket/run is an address; expected a directory: mount"):
        claim_directory(pathlib.Path("s3:/bucket/run"), dataclasses.replace(SHORT, workdir="s3:/bucket/run"))
