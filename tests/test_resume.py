"""A run that is killed and started again ends as the one that was not: the same bits, the same metrics file."""

import json
import random
import signal
import time

import pytest

from tests.commands import TINY, assert_same_run, start, train

# Checkpoints every 3 steps, log rows every 4, epochs of 5: nothing falls together.
ARGS = ["--epochs", "4", "--checkpoint.every-steps", "3", "--log-every", "4"]


pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert train(workdir, *ARGS).returncode == 0
    return workdir


def interrupt(workdir, number: int, step: int) -> int:
    """Starts or continues the run, sends the signal as soon as `step` is logged or saved, returns the exit status."""
    process = start("train.py", "--workdir", str(workdir), *TINY, *ARGS)
    deadline = time.monotonic() + 300
    while reached(workdir) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    print(out, err)
    return process.returncode


def reached(workdir) -> int:
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    logged = [json.loads(line)["step"] for line in lines]
    saved = [int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()]
    return max([0, *logged, *saved])


def test_sigkill(tmp_path, uninterrupted):
    seed = random.randrange(10**6)
    steps = sorted(random.Random(seed).sample(range(1, 20), 2))
    print(f"killed from steps {steps} on (seed {seed})")
    for step in steps:
        assert interrupt(tmp_path, signal.SIGKILL, step) in (-signal.SIGKILL, 0)  # 0: the run was faster
    assert train(tmp_path, *ARGS).returncode == 0
    assert_same_run(tmp_path, uninterrupted)


def test_sigterm(tmp_path, uninterrupted):
    step = random.randrange(1, 12)
    print(f"stopped from step {step} on")
    assert interrupt(tmp_path, signal.SIGTERM, step) in (143, 0)
    result = train(tmp_path, *ARGS)
    assert result.returncode == 0
    assert_same_run(tmp_path, uninterrupted)


def test_a_row_that_was_cut_short_is_written_again(tmp_path, uninterrupted):
    """What a full disk or a power cut leaves: half a line, and rows of steps whose checkpoint never came to be."""
    interrupt(tmp_path, signal.SIGKILL, 8)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 19, "loss": 1}\n{"kind": "tra')
    assert train(tmp_path, *ARGS).returncode == 0
    assert_same_run(tmp_path, uninterrupted)
