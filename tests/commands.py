"""Runs the project's commands as a user does, each in a process of its own with one device; compares their runs."""

import os
import pathlib
import subprocess
import sys

import numpy as np

from tests.tiny import brought_from_outside, register

DEVICES = "--xla_force_host_platform_device_count=8"
ROOT = pathlib.Path(__file__).parents[1]

# Three convolutions with norms and ECA: compiles in a second.
TINY = ["--plugin", "tests.tiny_plugin", "--model.name", "eca_tiny", "--batch-size", "64"]
TINY += ["--data.train-split", "train[:320]"]
TINY += ["--data.eval-split", "test[:100]", "--optim.warmup-epochs", "1"]


def environment(XLA_FLAGS: str = "", **extra: str) -> dict[str, str]:
    """Of a command: one device, with which XLA optimises as in the process of the tests, or what XLA_FLAGS say.

    (Many steps in float64, which only a cluster's tests do, take longer without optimisations than these.)
    """
    XLA_FLAGS = XLA_FLAGS or os.environ.get("XLA_FLAGS", "").replace(DEVICES, "").strip()
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": XLA_FLAGS, **extra}


def start(*args: str, **env: str) -> subprocess.Popen:
    """`python *args`, running."""
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=ROOT,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*args: str, **env: str) -> subprocess.CompletedProcess:
    """`python *args`, finished; its output is shown where a test fails."""
    process = start(*args, **env)
    out, err = process.communicate(timeout=600)
    print(out, err, sep="\n")
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def train(workdir: pathlib.Path, *args: str) -> subprocess.CompletedProcess:
    return run("train.py", "--workdir", str(workdir), *TINY, *args)


def final_arrays(workdir: pathlib.Path) -> list[np.ndarray]:
    """Parameters, statistics and momentum of the newest checkpoint."""
    import jax
    from flax import nnx

    from eca_jax.runs.run import read_run

    with brought_from_outside():
        register()
        found = read_run(workdir)
    return [np.asarray(leaf) for leaf in jax.tree.leaves((nnx.state(found.model), found.momentum))]


def assert_same_run(workdir: pathlib.Path, other: pathlib.Path) -> None:
    """The metrics files are equal to the byte, the last checkpoints to the bit."""
    assert (workdir / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    for a, b in zip(final_arrays(workdir), final_arrays(other), strict=True):
        np.testing.assert_array_equal(a, b)
