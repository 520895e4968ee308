"""Where numbers go: metrics.jsonl, TensorBoard, the terminal. Only process 0 writes."""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import tqdm

from eca_jax.runs.directory import METRICS_FILE, TENSORBOARD
from eca_jax.runs.metrics import read_rows
from eca_jax.tasks.base import Task


@contextlib.contextmanager
def without(module: str) -> Iterator[None]:
    """What is imported inside finds no such module, unless it is already there."""
    hidden = module not in sys.modules
    if hidden:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[module]


with without("torch"):  # half a gigabyte and seconds, of which the events need nothing
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
    from tensorboardX.summary import scalar


class RowWriter(Protocol):
    """A function of the user's own that is given every row: `wandb.Run.log` and `mlflow.log_metrics` are such.

    `values` are the scalars that TensorBoard has, by the same names ('train/loss', 'eval/top1'); what is not finite is
    NaN or infinite there. What it raises ends the run.
    """

    def __call__(self, values: dict[str, float], /, *, step: int) -> object: ...


class Writer:
    """Writes rows of scalars; `start` is the step that the run continues from.

    metrics.jsonl holds what the computation determines and nothing of the clock, so an interrupted run ends with the
    same file as one that was not: rows after `start` belong to work that was lost and is done again, and are cut off;
    so is the evaluation of step `start` itself where it is `evaluation_due`, because the checkpoint does not have it.
    A row is on the disk before a checkpoint that it belongs to, so each evaluation that a checkpoint has, at the steps
    `evaluated`, has its row; where one is not there, rows were lost, and a note says so.

    All writing is done in the calling thread: a full disk is an error there, not a silent end of the log.
    """

    def __init__(
        self,
        run: pathlib.Path,
        task: Task,
        *,
        start: int,
        evaluation_due: bool,
        evaluated: Iterable[int],
        total: int,
        batch_size: int,
        also: Sequence[RowWriter] = (),
    ):
        self._task, self._also = task, also
        self._keep_rows(run / METRICS_FILE, start, evaluation_due, evaluated)
        self._file = (run / METRICS_FILE).open("a", encoding="utf-8")
        (run / TENSORBOARD).mkdir(exist_ok=True)
        self._tensorboard = EventsWriter(str(run / TENSORBOARD / "events"))
        self._tensorboard.write_event(
            Event(wall_time=time.time(), step=start + 1, session_log=SessionLog(status=SessionLog.START))
        )  # TensorBoard hides what an earlier start wrote from this step on
        self._total, self._batch_size = total, batch_size
        self._bar = tqdm.tqdm(
            total=total * batch_size,
            initial=start * batch_size,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        self._last_step = start
        self._last_time = time.perf_counter()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, *_) -> None:
        self._bar.close()
        with contextlib.suppress(*([OSError] if kind else [])):  # what went wrong first is already on its way
            self._file.close()
            self._tensorboard.close()

    @staticmethod
    def _keep_rows(path: pathlib.Path, start: int, evaluation_due: bool, evaluated: Iterable[int]) -> None:
        rows = read_rows(path)
        kept = [
            (row["kind"], row["step"], line)
            for row, line in rows
            if row["step"] < start or (row["step"] == start and not (evaluation_due and row["kind"] == "eval"))
        ]
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes("".join(line for *_, line in kept).encode("utf-8", "surrogateescape"))
        os.replace(temporary, path)
        if lost := sorted(set(evaluated) - {step for kind, step, _ in kept if kind == "eval"}):
            print(
                f"note: {path} has no rows of the evaluations at steps {lost}, which checkpoints have: rows were lost; "
                "training goes on without them",
                file=sys.stderr,
            )
        if rows and not start:
            print(f"note: there is no checkpoint: training starts anew, and so does {path}", file=sys.stderr)

    def advance(self) -> None:
        """One more step has been given to the devices."""
        self._bar.update(self._batch_size)

    def train(self, step: int, epoch: float, lr: float, metrics: dict[str, float]) -> None:
        finite = all(map(math.isfinite, metrics.values()))
        text = self._task.describe_training(metrics) if finite else "no step since the last row was finite"
        rate = (step - self._last_step) * self._batch_size / (time.perf_counter() - self._last_time)
        left = tqdm.tqdm.format_interval((self._total - step) * self._batch_size / rate)
        self._write("train", step, {"epoch": epoch, "lr": lr, **metrics}, images_per_second=rate)
        if self._bar.disable:
            print(
                f"step {step}/{self._total}, epoch {epoch:.2f}: {text}, lr {lr:.3g}, {rate:,.0f} images/s, {left} left",
                flush=True,
            )
        else:
            self._bar.set_postfix_str(text)
        self.restart_clock(step)

    def evaluation(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        self._write("eval", step, {"epoch": epoch, **metrics})
        self.say(f"step {step}, epoch {epoch:.2f}: held-out {self._task.describe(metrics)}")

    def say(self, text: str) -> None:
        if self._bar.disable:
            print(text, flush=True)
        else:
            self._bar.write(text)

    def restart_clock(self, step: int) -> None:
        """What happened until now does not count as training time."""
        self._last_step, self._last_time = step, time.perf_counter()

    def sync(self) -> None:
        """Rows written so far survive a crash of the machine: called before a checkpoint that they belong to."""
        os.fsync(self._file.fileno())

    def _write(self, kind: str, step: int, values: dict[str, float], **of_the_clock: float) -> None:
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **known}) + "\n")  # JSON has no NaN
        self._file.flush()
        scalars = {f"{kind}/{name}": value for name, value in (values | of_the_clock).items()}
        for name, value in scalars.items():
            if math.isfinite(value):  # tensorboardX warns of others
                self._tensorboard.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._tensorboard.flush()
        for writer in self._also:
            writer(dict(scalars), step=step)


class NoWriter(contextlib.nullcontext):
    """What the other processes have."""

    def __enter__(self) -> "NoWriter":
        return self

    def advance(self) -> None: ...
    def train(self, step: int, epoch: float, lr: float, metrics: dict[str, float]) -> None: ...
    def evaluation(self, step: int, epoch: float, metrics: dict[str, float]) -> None: ...
    def say(self, text: str) -> None: ...
    def restart_clock(self, step: int) -> None: ...
    def sync(self) -> None: ...
