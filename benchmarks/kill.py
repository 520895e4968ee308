"""Kills a training run at random moments, goes on with it, and compares its end with that of a run left in peace.

    python -m benchmarks.kill [--kills 100] [--seed 0]

A run of 40 steps on the digits, with a checkpoint every 3 steps, a log row every 4 and an evaluation every 5. Each
attempt draws a phase and a moment in it (after 1 to 3 of them, where it has several), gets SIGKILL there, and the next
attempt goes on. When a run has come to its end, its metrics file is compared to the byte, and parameters, statistics
and momentum to the bit; then another begins, until there were so many kills. Prints the table of docs/results.md; the
exit status is 1 where anything differed. An attempt takes about 10 s on 2 cores.
"""

import argparse
import collections
import contextlib
import itertools
import os
import pathlib
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time

from tests.commands import ROOT, TINY, assert_same_run, environment

ARGS = [*TINY, "--epochs", "8", "--checkpoint.every-steps", "3", "--log-every", "4", "--data.num-threads", "2"]
ONCE = ("start", "restore", "first step")
PHASES = (*ONCE, "step", "save", "evaluation")


def report_phases(report: int) -> None:
    """Makes training write the name of each phase that it enters into a pipe. The training itself stays as it is."""
    from eca_jax.runs.checkpoint import Checkpoints
    from eca_jax.runs.writers import Writer
    from eca_jax.training import loop

    def enter(phase: str) -> None:
        os.write(report, phase.encode() + b"\n")

    def reporting(function, phase: str, after: str):
        def wrapped(*args, **kwargs):
            enter(phase)
            result = function(*args, **kwargs)
            enter(after)
            return result

        return wrapped

    enter("start")
    Checkpoints.restore_newest = reporting(Checkpoints.restore_newest, "restore", "first step")
    Checkpoints.save = reporting(Checkpoints.save, "save", "step")
    Writer.advance = reporting(Writer.advance, "step", "step")
    loop.evaluate = reporting(loop.evaluate, "evaluation", "step")


def train(workdir: pathlib.Path, choose) -> str | None:
    """One attempt. `choose(phase, n)` answers the n-th entry into a phase with the seconds to live, or None.

    Returns the phase in which it was killed; None where it came to its end.

    Raises:
      RuntimeError: training failed by itself.
    """
    read, write = os.pipe()
    command = [sys.executable, "-m", "benchmarks.kill", "--report", str(write), "--workdir", str(workdir)]
    with (workdir.parent / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), pass_fds=[write], stdout=output, stderr=subprocess.STDOUT
        )
    os.close(write)
    entries, phase, moment = collections.Counter(), "start", None
    with contextlib.closing(os.fdopen(read, "rb", buffering=0)):
        while True:
            ready, _, _ = select.select([read], [], [], None if moment is None else max(moment - time.monotonic(), 0))
            if not ready:
                process.kill()
                process.wait()
                return phase
            data = os.read(read, 4096)
            if not data:
                if process.wait() != 0:
                    raise RuntimeError((workdir.parent / "output.txt").read_text())
                return None
            for phase in data.decode().split("\n")[:-1]:
                entries[phase] += 1
                seconds = choose(phase, entries[phase])
                if seconds is not None and moment is None:
                    moment = time.monotonic() + seconds


def main() -> int:
    """Kills, compares, prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=int, help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args()
    if args.report is not None:
        from eca_jax.cli import train_main

        report_phases(args.report)
        return train_main([*rest, *ARGS])

    start, rng, killed, half_written, compared = time.monotonic(), random.Random(args.seed), [], 0, 0
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": f"{directory}/cache",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }
        undisturbed, workdir = pathlib.Path(directory, "undisturbed"), pathlib.Path(directory, "run")
        train(undisturbed, lambda phase, n: None)  # compiles
        entered: list[tuple[str, float]] = []
        train(workdir, lambda phase, n: entered.append((phase, time.monotonic())))
        assert_same_run(workdir, undisturbed)
        shutil.rmtree(workdir)
        seconds = {}
        for phase in PHASES:
            spent = [end - begin for (name, begin), (_, end) in itertools.pairwise(entered) if name == phase]
            seconds[phase] = sum(spent) / len(spent)
        seconds["restore"] = seconds["save"]  # where there was nothing to restore
        print("seconds a phase: " + ", ".join(f"{phase} {value:.3f}" for phase, value in seconds.items()), flush=True)

        while len(killed) < args.kills:
            wanted = rng.choice(PHASES)
            nth, lifetime = 1 if wanted in ONCE else rng.randint(1, 3), rng.uniform(0, seconds[wanted])
            phase = train(
                workdir, lambda phase, n, at=(wanted, nth), seconds=lifetime: seconds if (phase, n) == at else None
            )
            if phase is None:
                assert_same_run(workdir, undisturbed)
                compared += 1
                print(f"run {compared}: the same after {len(killed)} kills", flush=True)
                shutil.rmtree(workdir)
            else:
                killed.append(phase)
                half_written += any("tmp" in path.name for path in workdir.glob("checkpoints/*"))
        if workdir.exists():
            train(workdir, lambda phase, n: None)
            assert_same_run(workdir, undisturbed)
            compared += 1

    print(f"\nseed {args.seed}, {len(killed)} kills in {time.monotonic() - start:.0f} s\n")
    print("| killed in | times |\n|---|---|")
    for phase in PHASES:
        print(f"| {phase} | {killed.count(phase)} |")
    print(
        f"\nWith a checkpoint half written: {half_written}. Runs brought to their end and compared: {compared}, all the"
    )
    print("same as the undisturbed one: metrics.jsonl to the byte, parameters, statistics and momentum to the bit.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
