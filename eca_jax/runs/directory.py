"""The directory of a run: what belongs into it, who may write there, and what happens when nobody can.

RUN/config.json                 the resolved configuration
RUN/metrics.jsonl               a row each log interval and evaluation
RUN/tensorboard/
RUN/checkpoints/                runs/checkpoint.py
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from eca_jax.config import Config, differences, from_dict, to_dict
from eca_jax.data.records import PYTHON
from eca_jax.errors import EcaJaxError, expect_text
from eca_jax.runs.checkpoint import CHECKPOINTS, DAMAGED, Checkpoints, NotSaved

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"
LOCK = ".lock"
TRANSFORM = "transform"
"""What a checkpoint calls the name of the transform that `train` was given; it says nothing where there was none."""

KINDS = {"file": pathlib.Path.is_file, "directory": pathlib.Path.is_dir}
PLACES = {CONFIG_FILE: "file", METRICS_FILE: "file", LOCK: "file"} | dict.fromkeys(
    (CHECKPOINTS, DAMAGED, TENSORBOARD), "directory"
)
"""Of which kind each thing in a run is, where it is there."""


@contextlib.contextmanager
def stops_where_nothing_can_be_written(run: pathlib.Path) -> Iterator[None]:
    """Makes one line of a full disk, a quota or a read-only file system, whoever noticed it.

    Raises:
      EcaJaxError: names the directory, the free space, what is saved and what to do.
    """
    try:
        yield
    except Exception as error:
        reason = _cannot_write(error, run)
        if reason is None:
            raise
        place = next(path for path in (run, *run.absolute().parents) if path.exists())
        saved = sorted(int(path.name) for path in run.glob(f"{CHECKPOINTS}/*") if path.name.isdecimal())
        needed = ""
        if isinstance(error, NotSaved):
            needed = f"the checkpoint of step {error.step} has up to {error.size / 2**20:.1f} MiB, and "
        free = f"{shutil.disk_usage(place).free / 2**20:.1f} MiB are free"
        raise EcaJaxError(
            f"workdir: cannot write into {run} ({reason}; {needed}{free}); "
            f"the checkpoints of steps {saved or '(none)'} are whole. Make room, or make it writable, and give the "
            "same command again: it goes on from the newest"
        ) from error


CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def _cannot_write(error: BaseException | None, run: pathlib.Path) -> str | None:
    """The system's words for it, where that is what an error, or the one that it came from, is about."""
    if error is None:
        return None
    forbidden = (errno.EACCES,) if str(run) in str(error) else ()  # elsewhere it may be about reading
    for number in (*CANNOT_WRITE, *forbidden):  # TensorStore's errors have only the text
        if os.strerror(number) in str(error):
            return os.strerror(number)
    return _cannot_write(error.__cause__ or error.__context__, run)


def claim_directory(run: pathlib.Path, config: Config) -> None:
    """Makes the run directory.

    Raises:
      EcaJaxError: it cannot be one, or holds something else, or the rows of a run whose checkpoints are gone.
    """
    if re.match(r"\w[\w+.-]*:/", config.workdir):  # with one slash too, of which TensorBoard's writer makes a bucket
        raise EcaJaxError(
            f"workdir: {config.workdir} is an address; expected a directory: mount the bucket (for Google Cloud "
            "Storage with gcsfuse) and name the directory"
        )
    expect_text("workdir", run)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        place = pathlib.Path(error.filename)
        what = "a file" if place.is_file() else f"a link to {os.readlink(place)}, which leads nowhere"
        raise EcaJaxError(f"workdir: {place} is {what}; expected a directory") from error
    except OSError as error:
        raise EcaJaxError(
            f"workdir: cannot make the directory {run} ({error.strerror}); choose another --workdir"
        ) from error
    check_places(run, "workdir")
    foreign = [] if (run / CONFIG_FILE).is_file() else [p.name for p in run.glob("*") if not p.name.startswith(".")]
    if foreign:
        raise EcaJaxError(
            f"workdir: {run} holds {', '.join(sorted(foreign)[:3])} and no {CONFIG_FILE}, so it is no run of eca_jax: "
            "choose an empty or new directory with --workdir"
        )
    rows = run / METRICS_FILE
    if rows.is_file() and rows.stat().st_size and not (run / CHECKPOINTS).exists():  # a run makes it before its rows
        raise EcaJaxError(
            f"workdir: {rows} has rows of a run whose {CHECKPOINTS} are gone, and to start anew would replace them: "
            f"put {run / CHECKPOINTS} back to go on; or, to start anew, move {METRICS_FILE} away, or choose another "
            "--workdir"
        )
    for directory in (run, *(run / name for name in (CHECKPOINTS, DAMAGED, TENSORBOARD))):
        if directory.exists():
            tempfile.TemporaryFile(dir=directory).close()  # what may not be written is said now, not after an epoch
    if not (run / CONFIG_FILE).is_file() and jax.process_index() == 0:
        write_config(run, config)


def check_places(run: pathlib.Path, what: str) -> None:
    """Looks whether what is in a run is of its kind and may be read; `what` is the option that names the run.

    Raises:
      EcaJaxError: names the first that is not.
    """
    for name, expected in PLACES.items():
        place = run / name
        try:
            if not place.exists():
                continue
            found = next((kind for kind, is_kind in KINDS.items() if is_kind(place)), "special file")
            if found != expected:
                raise EcaJaxError(
                    f"{what}: {place} is a {found}; expected a {expected} of the run: move the {found} away, or choose "
                    f"another --{what}"
                )
            (os.scandir if expected == "directory" else open)(place).close()
        except PermissionError as error:
            raise EcaJaxError(f"{what}: cannot read {place} ({error.strerror}); make it readable") from error


@contextlib.contextmanager
def locked(run: pathlib.Path) -> Iterator[None]:
    """Keeps a second process that is given the same run directory from writing into it."""
    with (run / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EcaJaxError(
                f"workdir: another process is training in {run}; wait for it or choose another --workdir"
            ) from None
        yield


@contextlib.contextmanager
def writable_run(config: Config) -> Iterator[Checkpoints]:
    """The checkpoints of the run in `config.workdir`, for this process alone (of each cluster) to write.

    Raises:
      EcaJaxError: the directory holds something else, or another process trains in it.
    """
    run = pathlib.Path(config.workdir)
    claim_directory(run, config)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all processes have seen the run directory")
    with (
        locked(run) if jax.process_index() == 0 else contextlib.nullcontext(),
        Checkpoints(run, config.checkpoint.keep, score=config.task.best) as checkpoints,
    ):
        yield checkpoints


def write_config(run: pathlib.Path, config: Config) -> None:
    """config.json, replaced as a whole."""
    temporary = run / f".{CONFIG_FILE}.tmp"
    temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n")
    os.replace(temporary, run / CONFIG_FILE)


def read_config(run: pathlib.Path) -> Config:
    """What config.json says.

    Raises:
      EcaJaxError: it is damaged, or of another version, or needs a plugin.
    """
    file = run / CONFIG_FILE
    try:
        values = json_object(file.read_text())
    except ValueError as error:
        raise EcaJaxError(f"{file} is damaged: {error}") from error
    try:
        return from_dict(values)
    except EcaJaxError as error:
        raise EcaJaxError(f"{file}: {error}") from error


def json_object(text: str) -> dict:
    """What a text of JSON says.

    Raises:
      ValueError: it is no JSON, or another value than an object.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {text.strip()[:40]!r}")
    return value


def check_continues(checkpoints: Checkpoints, step: int, run: dict) -> None:
    """Refuses a configuration or a data set that is not the one of the checkpoint; `run` is as `save` takes it."""
    saved = checkpoints.read_run(step)
    old, new = from_dict(saved["config"]), from_dict(run["config"])
    if old.data.name == PYTHON != new.data.name:
        raise EcaJaxError(
            f"the run of the checkpoint {checkpoints.path(step)} has its data from Python, not from {new.data.name!r}: "
            "continue it in Python, with eca_jax.training.train(config, train=..., held_out=...), or give another "
            "--workdir to start anew with other data"
        )
    same_data = saved.get("data") == run["data"]
    if same_data or old.data.name.rstrip("/") == new.data.name.rstrip("/"):  # a folder may have moved
        old = dataclasses.replace(old, data=dataclasses.replace(old.data, name=new.data.name))
    changed = differences(old, new)
    if "data" in saved and not same_data:  # version 0.1.0 did not write it
        other = "are other examples" if new.data.name == PYTHON else "has other files or sizes"
        changed.append(f"the training data, which {other}")
    if saved.get(TRANSFORM) != run.get(TRANSFORM):
        changed.append(f"transform: {saved.get(TRANSFORM)} -> {run.get(TRANSFORM)}")
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
    expect_text("run", run)
    if not run.is_dir():
        raise EcaJaxError(f"there is no run directory {run}: give the --workdir of a training run")
    check_places(run, "run")
    if not (run / CONFIG_FILE).is_file():
        raise EcaJaxError(f"{run} is no run of eca_jax: it has no {CONFIG_FILE}")
    if not (run / CHECKPOINTS).is_dir():
        raise EcaJaxError(f"{run} has no checkpoint yet")
    return Checkpoints(run, score=read_config(run).task.best, read_only=True)


def choose_step(checkpoints: Checkpoints, which: str) -> int:
    """'latest', 'best' or the number of a step."""
    if which in ("latest", "best"):
        step = checkpoints.latest() if which == "latest" else checkpoints.best()
        if step is None:
            raise EcaJaxError(
                f"{checkpoints.directory} has no {which} checkpoint; there are {checkpoints.steps() or 'none'}"
            )
        return step
    if not (which.isascii() and which.isdecimal()):
        raise EcaJaxError(f"checkpoint: expected 'latest', 'best' or a step, got {which!r}")
    return int(which)
