"""Processes and devices do not matter: the same global batches, and the same run, also where they change on the way."""

import collections
import dataclasses
import json
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.commands import ROOT, environment
from tests.oracles import top_1_and_5

pytestmark = pytest.mark.system

# A group of 16 lies inside a device. (Groups of 4 on the 1x1 pixels of the last stage make a chaotic run: there a
# difference of 1e-16 grows by half an order of magnitude a step, here it stays below 1e-13.)
ARGS = "--model.width-multiplier 0.125 --model.batch-norm-group 16 --model.dtype float64 --data.train-split train[:640]"
ARGS += " --data.eval-split test --batch-size 128 --epochs 4 --log-every 5 --checkpoint.keep 3"
STEPS = 20

# Trains in float64 and writes the digest of every 16 rows of a global batch that this process holds, and the result.
# A fault ("process", and "signal" with "step", or "unreadable" with a step) is caused from inside.
WORKER = """
import hashlib, json, os, sys
sys.path.insert(0, ".")
import jax, numpy as np
from eca_jax import cli
from eca_jax.runs import checkpoint
from eca_jax.training import loop

out, process, fault, *args = sys.argv[1:]
fault = json.loads(fault)
mine = int(process) == fault.get("process")
file = open(out, "w")
train, batches, read_state = loop.train, loop.train_batches, checkpoint.Checkpoints.read_state

def spying(*args, **kwargs):
    for step, batch in zip(kwargs["steps"], batches(*args, **kwargs)):
        for name in ("image", "label"):
            for shard in batch[name].addressable_shards:
                start, rows = shard.index[0].start or 0, np.asarray(shard.data)
                for i in range(0, len(rows), 16):
                    digest = hashlib.sha256(rows[i : i + 16]).hexdigest()
                    print(json.dumps([f"{step} {name} {start + i}", digest]), file=file, flush=True)
        if mine and step + 1 == fault.get("step"):
            os.kill(os.getpid(), fault["signal"])
        yield batch

def reading(self, step, *args):
    if mine and step == fault.get("unreadable"):
        raise checkpoint.DamagedCheckpoint("cannot read it here")
    return read_state(self, step, *args)

def recording(config, **others):
    result = train(config, **others)
    found = [result.step, result.evaluation, jax.device_count(), jax.process_count()]
    print(json.dumps(["result", found]), file=file, flush=True)
    return result

loop.train, loop.train_batches, checkpoint.Checkpoints.read_state = recording, spying, reading
sys.exit(cli.train_main(args))
"""


@dataclasses.dataclass
class Ended:
    """A process."""

    status: int
    output: str
    rows: dict[str, str]
    result: list | None
    """Step, evaluation, devices, processes."""
    seconds: float
    """That it lived longer than the one that ended first."""


def launch(tmp_path, name: str, processes: int, devices: int, **fault) -> list[Ended]:
    """Starts or continues the run `name` on so many processes, each with so many devices."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}"
    outputs = [tmp_path / f"{name}{i}.json" for i in range(processes)]
    env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_ENABLE_X64": "1"}
    if processes > 1:  # process 0 alone would find its programs there, and Gloo waits 30 s for one that compiles
        env["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    running = []
    for i, output in enumerate(outputs):
        args = ["--workdir", str(tmp_path / name), *ARGS.split()]
        if processes > 1:
            args += f"--cluster.coordinator {coordinator} --cluster.num-processes {processes}".split()
            args += ["--cluster.process-id", str(i)]
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(output), str(i), json.dumps(fault), *args],
                cwd=ROOT,
                env=environment(**env),
                stdout=(tmp_path / f"{name}{i}.txt").open("w"),
                stderr=subprocess.STDOUT,
            )
        )
    ends: dict[int, float] = {}
    while len(ends) < processes:
        ends |= {i: time.monotonic() for i, p in enumerate(running) if i not in ends and p.poll() is not None}
        time.sleep(0.05)
    found = []
    for i, output in enumerate(outputs):
        text = (tmp_path / f"{name}{i}.txt").read_text()
        print(text)
        rows = dict(json.loads(line) for line in output.read_text().splitlines())
        result = rows.pop("result", None)
        found.append(Ended(running[i].returncode, text, rows, result, ends[i] - min(ends.values())))
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run on one process of eight devices: its directory, which is called `one`, and how it ended."""
    directory = tmp_path_factory.mktemp("cluster")
    (ended,) = launch(directory, "one", 1, 8)
    assert (ended.status, ended.result[0], ended.result[2:]) == (0, STEPS, [8, 1])
    assert len(ended.rows) == STEPS * 2 * 8
    return directory, ended


def assert_same(directory, name: str, one: Ended, evaluation: dict[str, float]) -> None:
    """Metrics and the last checkpoint are those of the run `one`, to the tolerance of sums in another order."""
    metrics = [
        [json.loads(line) for line in (directory / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("one", name)
    ]
    assert len(metrics[0]) == len(metrics[1]) == 8
    for a, b in zip(*metrics, strict=True):
        assert (a.pop("kind"), a.pop("step")) == (b.pop("kind"), b.pop("step"))
        assert a == pytest.approx(b, rel=1e-6)  # the sums of the log are float32
    assert evaluation == pytest.approx(one.result[1], rel=1e-6)

    # Checkpoints are read by this process, on its own devices.
    import jax
    from flax import nnx

    from eca_jax.data.sources import open_source
    from eca_jax.runs.run import load_run

    with jax.enable_x64(True):
        models = [load_run(directory / run)[0] for run in ("one", name)]
        leaves = [jax.tree.leaves(nnx.state(model)) for model in models]
        for a, b in zip(*leaves, strict=True):
            a, b = np.asarray(a), np.asarray(b)
            assert a.dtype == np.float64
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * max(np.abs(a).max(), 1e-3))
        # The whole held-out split, in batches of 128 of which the last has 104: what NumPy says image by image.
        expected = top_1_and_5(nnx.jit(models[1]), models[1].preprocess, open_source("digits", "test"))
        assert evaluation["count"] == 360
        assert (evaluation["top1"], evaluation["top5"]) == pytest.approx(expected, rel=1e-6)


def test_two_processes_of_four_devices_are_one_of_eight(one):
    directory, alone = one
    two = launch(directory, "two", 2, 4)
    for part in two:
        assert part.status == 0
        assert part.result[2:] == [8, 2]
        assert_same(directory, "two", alone, part.result[1])
    assert not two[0].rows.keys() & two[1].rows.keys()
    assert two[0].rows | two[1].rows == alone.rows


@pytest.mark.slow
def test_a_run_moves_between_clusters_and_survives_the_death_of_a_process(one):
    """8 devices, then 2 processes of 2 devices twice, then 1 device; each but the last is ended by a fault."""
    directory, alone = one
    seen = collections.defaultdict(set)

    def go_on(processes: int, devices: int, **fault) -> list[Ended]:
        parts = launch(directory, "moving", processes, devices, **fault)
        for part in parts:
            for key, digest in part.rows.items():
                seen[key].add(digest)
        return parts

    (first,) = go_on(1, 8, process=0, signal=signal.SIGTERM, step=7)
    assert (first.status, first.result[0]) == (128 + signal.SIGTERM, 7)

    # Process 1 cannot read the newest checkpoint, so both go on from the one before; then it dies.
    survivor, dead = go_on(2, 2, process=1, unreadable=7, signal=signal.SIGKILL, step=12)
    assert dead.status == -signal.SIGKILL
    assert f"continuing {directory}/moving at step 5 of 20" in survivor.output
    assert (directory / "moving" / "checkpoints-damaged" / "7").is_dir()
    assert survivor.seconds < 60
    if survivor.status == 2:  # its collective failed
        (line,) = [line for line in survivor.output.splitlines() if line.startswith("error: ")]
        assert "process 0 of 2 cannot go on, most likely because another one has died" in line
        assert "Start all processes again" in line
    else:  # its collective waited, as on TPU, until JAX missed the heartbeat
        assert survivor.status == -signal.SIGABRT
        assert "This most likely indicates that another task died" in survivor.output

    parts = go_on(2, 2, process=1, signal=signal.SIGTERM, step=13)
    assert [part.status for part in parts] == [128 + signal.SIGTERM] * 2
    assert parts[0].result == parts[1].result
    assert 13 <= parts[0].result[0] < STEPS
    assert "continuing" in parts[0].output

    (last,) = go_on(1, 1)
    assert (last.status, last.result[0], last.result[2:]) == (0, STEPS, [1, 1])
    assert seen == {key: {digest} for key, digest in alone.rows.items()}
    assert_same(directory, "moving", alone, last.result[1])
