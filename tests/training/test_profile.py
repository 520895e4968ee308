"""A trace of a few steps: which steps it has, and what is refused; one of a whole run: test_loop.py."""

import pathlib

import jax
import pytest

from eca_jax import cli
from eca_jax.errors import EcaJaxError
from eca_jax.runs.writers import NoWriter
from eca_jax.training.profile import Profiler, check_profile


def traces(run: pathlib.Path) -> list[list[int]]:
    """The steps of each trace in a run's directory, where TensorBoard's plugin looks for them."""
    found = []
    for file in sorted(run.glob("tensorboard/plugins/profile/*/*.xplane.pb")):
        planes = jax.profiler.ProfileData.from_file(str(file)).planes
        events = [event for plane in planes for line in plane.lines for event in line.events]
        assert not [event.name for event in events if "compile" in event.name.lower()]
        found.append([dict(event.stats)["step_num"] for event in events if event.name == "train"])
    return found


class Said(NoWriter):
    def __init__(self):
        self.lines = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def profiled(profile: range, run: pathlib.Path, steps: int, start: int = 0) -> list[str]:
    """What is said in a run of a function that fails at last."""
    writer, function = Said(), jax.jit(lambda x: x + 1)
    function(0)
    with Profiler(profile, str(run), start, writer) as profiler:  # type: ignore[arg-type]
        for step in range(start, steps):
            assert profiler(step, function, step) == step + 1
        if steps == 5:
            raise KeyboardInterrupt
    return writer.lines


def test_a_run_that_ends_early_ends_the_trace(tmp_path):
    assert profiled(range(2, 9), tmp_path / "stopped", 4) == [
        f"profile: steps 2:4 are in {tmp_path}/stopped/tensorboard, for TensorBoard's profiler"
    ]
    with pytest.raises(KeyboardInterrupt):
        profiled(range(2, 9), tmp_path / "failed", 5)
    assert (traces(tmp_path / "stopped"), traces(tmp_path / "failed")) == ([[2, 3]], [[2, 3, 4]])


def test_a_run_that_goes_on_traces_the_steps_that_are_left(tmp_path):
    assert profiled(range(3, 8), tmp_path / "run", 10, start=5) == [
        f"profile: steps 5:8 are in {tmp_path}/run/tensorboard, for TensorBoard's profiler"
    ]
    assert traces(tmp_path / "run") == [[5, 6, 7]]


def test_steps_that_are_done_are_not_traced(tmp_path):
    said = ["profile: nothing is traced: steps 3:8 are done, the run goes on at 10"]
    assert profiled(range(3, 8), tmp_path / "run", 12, start=10) == said
    assert not (tmp_path / "run").exists()


def test_process_0_alone_traces(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert profiled(range(2, 4), tmp_path / "run", 6) == []
    assert not (tmp_path / "run").exists()


def test_what_the_profiler_cannot_do_is_one_error(tmp_path, monkeypatch):
    with jax.profiler.trace(tmp_path / "own"), pytest.raises(EcaJaxError, match="profile: Profile has already been"):
        profiled(range(2, 4), tmp_path / "run", 6)
    stop = jax.profiler.stop_trace

    def full() -> None:
        stop()
        raise RuntimeError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    with pytest.raises(EcaJaxError, match="profile: RESOURCE_EXHAUSTED: No space left on device"):
        profiled(range(2, 4), tmp_path / "run", 6)


@pytest.mark.parametrize("profile", [range(20, 10), range(10, 20, 2), range(3, 3), range(-2, 3), (10, 20), "10:20"])
def test_steps_that_are_none_are_refused(profile):
    with pytest.raises(EcaJaxError, match=r"profile: expected steps such as range\(10, 20\), got "):
        check_profile(profile, 100)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("20:10", "argument --profile: expected START:STOP with START < STOP, such as 10:20, got '20:10'"),
        ("a", "argument --profile: expected START:STOP with START < STOP, such as 10:20, got 'a'"),
        ("10", "argument --profile: expected START:STOP with START < STOP, such as 10:20, got '10'"),
        ("-1:3", "argument --profile: expected"),
        ("", "argument --profile: expected"),
        ("3:6", "profile: steps 3:6 are beyond the 5 steps of the run"),
    ],
)
def test_the_command_refuses_what_it_cannot_trace(tmp_path, capsys, monkeypatch, value, message):
    monkeypatch.setattr("eca_jax.sharding.initialize_cluster", lambda config: None)
    args = ["--data.train-split", "train[:320]", "--epochs", "1", "--workdir", str(tmp_path / "run")]
    assert cli.train_main([*args, f"--profile={value}"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message}")
    assert printed.count("\n") == 1
    assert not (tmp_path / "run").exists()
