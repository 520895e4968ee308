"""The run directory: its configuration, and its checkpoints. The only file that imports Orbax.

RUN/config.json            the resolved configuration
RUN/metrics.jsonl          a row each log interval and evaluation
RUN/tensorboard/
RUN/checkpoints/STEP/      `state` (arrays), `run` (configuration, class names), `metrics`
"""

import contextlib
import fcntl
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import absl.logging
import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from eca_jax.config import Config, differences, from_dict, to_dict
from eca_jax.errors import EcaJaxError

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"

# Orbax warns of what is so on purpose: checkpoints between two evaluations have no metrics, readers are read-only.
ON_PURPOSE = re.compile("did not provide metrics|read_only=True|directory is read only")
absl.logging.get_absl_logger().addFilter(lambda record: not ON_PURPOSE.search(record.getMessage()))


def _top1(metrics: dict[str, float]) -> float:
    return metrics["top1"]


class Checkpoints:
    """Saves asynchronously; keeps the newest `keep` and the best by held-out top-1. Use as a context manager."""

    def __init__(self, run: str | pathlib.Path, keep: int = 1, *, read_only: bool = False):
        self.directory = pathlib.Path(run).absolute() / CHECKPOINTS
        self._check_metrics()
        newest = checkpoint_managers.LatestN(keep)
        best = checkpoint_managers.BestN(get_metric_fn=_top1, n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            epath.Path(self.directory),
            options=ocp.CheckpointManagerOptions(
                best_fn=_top1,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy([newest, best]),
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def _check_metrics(self) -> None:
        """Orbax reads the metrics of all checkpoints when it starts, and does not say which one it cannot read."""
        for file in sorted(self.directory.glob("*/metrics/metrics")):
            try:
                json.loads(file.read_text())
            except ValueError as error:
                raise self._damaged(file.parents[1], error) from error

    @staticmethod
    def _damaged(path: pathlib.Path, error: Exception) -> EcaJaxError:
        return EcaJaxError(
            f"cannot read the checkpoint {path}: it is damaged or not of eca_jax; remove that directory to go on from "
            f"the one before ({str(error)[:200]})"
        )

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step with the highest held-out top-1."""
        return self._manager.best_step()

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def metrics(self, step: int) -> dict[str, float] | None:
        """What the evaluation at that step said; None where it was saved without one."""
        return self._manager.metrics(step)

    def path(self, step: int) -> pathlib.Path:
        return self.directory / str(step)

    def save(self, step: int, state: Any, run: dict, metrics: dict[str, float] | None) -> None:
        """Starts to write; training goes on meanwhile. A checkpoint is complete or not there."""
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run)),
            metrics=metrics,
            force=True,
        )

    def wait(self) -> None:
        self._manager.wait_until_finished()

    def read_run(self, step: int) -> dict:
        """Configuration and class names, without the arrays."""
        run = self._restore(step, run=ocp.args.JsonRestore()).run
        missing = [key for key in ("config", "class_names", "num_examples") if key not in run]
        if missing:
            raise EcaJaxError(
                f"the checkpoint {self.path(step)} does not say its {', '.join(missing)}: it is of another version of "
                "eca_jax; continue it with that one, or train anew in another --workdir"
            )
        return run

    def read_state(self, step: int, abstract_state: Any) -> Any:
        """The arrays, onto the devices that the shardings of `abstract_state` name, whatever they were saved from."""
        return self._restore(step, state=ocp.args.StandardRestore(abstract_state)).state

    def _restore(self, step: int, **items) -> Any:
        if step not in self._manager.all_steps():
            raise EcaJaxError(f"{self.directory} has no checkpoint of step {step}; there are {self.steps() or 'none'}")
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, OSError) as error:
            raise self._damaged(self.path(step), error) from error


def claim_directory(run: pathlib.Path, config: Config) -> None:
    """Makes the run directory, or refuses one that holds something else."""
    if run.exists() and not run.is_dir():
        raise EcaJaxError(f"workdir: {run} is a file; expected a directory")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EcaJaxError(
            f"workdir: cannot make the directory {run} ({error.strerror}); choose another --workdir"
        ) from error
    foreign = [] if (run / CONFIG_FILE).is_file() else [p.name for p in run.glob("*") if not p.name.startswith(".")]
    if foreign:
        raise EcaJaxError(
            f"workdir: {run} holds {', '.join(sorted(foreign)[:3])} and no {CONFIG_FILE}, so it is no run of eca_jax: "
            "choose an empty or new directory with --workdir"
        )
    if not (run / CONFIG_FILE).is_file() and jax.process_index() == 0:
        write_config(run, config)


@contextlib.contextmanager
def locked(run: pathlib.Path) -> Iterator[None]:
    """Keeps a second process that is given the same run directory from writing into it."""
    with (run / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EcaJaxError(
                f"workdir: another process is training in {run}; wait for it or choose another --workdir"
            ) from None
        yield


def write_config(run: pathlib.Path, config: Config) -> None:
    """config.json, replaced as a whole."""
    temporary = run / f".{CONFIG_FILE}.tmp"
    temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n")
    os.replace(temporary, run / CONFIG_FILE)


def check_continues(checkpoints: Checkpoints, step: int, run: dict) -> None:
    """Refuses a configuration or a data set that is not the one of the checkpoint; `run` is as `save` takes it."""
    saved = checkpoints.read_run(step)
    changed = differences(from_dict(saved["config"]), from_dict(run["config"]))
    if saved["num_examples"] != run["num_examples"]:
        changed.append(f"training examples: {saved['num_examples']} -> {run['num_examples']}")
    if saved["class_names"] != run["class_names"]:
        changed.append(
            f"classes of the data set: {len(saved['class_names'])} -> {len(run['class_names'])}, or other names"
        )
    if changed:
        raise EcaJaxError(
            f"the configuration differs from the checkpoint {checkpoints.path(step)} that would be continued: "
            f"{'; '.join(changed)}. Give the same values to continue it, or another --workdir to start anew"
        )


def open_run(run: str | pathlib.Path) -> Checkpoints:
    """The checkpoints of an existing run, for reading."""
    run = pathlib.Path(run)
    if not run.is_dir():
        raise EcaJaxError(f"there is no run directory {run}: give the --workdir of a training run")
    if not (run / CONFIG_FILE).is_file():
        raise EcaJaxError(f"{run} is no run of eca_jax: it has no {CONFIG_FILE}")
    if not (run / CHECKPOINTS).is_dir():
        raise EcaJaxError(f"{run} has no checkpoint yet")
    return Checkpoints(run, read_only=True)


def choose_step(checkpoints: Checkpoints, which: str) -> int:
    """'latest', 'best' or the number of a step."""
    if which in ("latest", "best"):
        step = checkpoints.latest() if which == "latest" else checkpoints.best()
        if step is None:
            raise EcaJaxError(
                f"{checkpoints.directory} has no {which} checkpoint; there are {checkpoints.steps() or 'none'}"
            )
        return step
    if not which.isdecimal():
        raise EcaJaxError(f"checkpoint: expected 'latest', 'best' or a step, got {which!r}")
    return int(which)
