"""Training from a configuration to a checkpoint.

The order of things, in `train`: data -> program (compiled functions and shardings) -> run directory -> state (new or
restored) -> an evaluation that was interrupted -> steps, and between them log rows, evaluations and checkpoints.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from eca_jax.config import Config
from eca_jax.data.bad_records import BadRecords
from eca_jax.data.loader import train_batches
from eca_jax.data.python_records import Rows
from eca_jax.data.records import Source
from eca_jax.data.transform import Transform
from eca_jax.errors import EcaJaxError
from eca_jax.optim import total_steps
from eca_jax.runs.checkpoint import Checkpoints
from eca_jax.runs.directory import check_continues, stops_where_nothing_can_be_written, writable_run, write_config
from eca_jax.runs.run import describe_run
from eca_jax.runs.state import TrainState
from eca_jax.runs.writers import NoWriter, RowWriter, Writer
from eca_jax.sharding import make_mesh, names_lost_processes
from eca_jax.tasks.base import means
from eca_jax.training.announce import describe_start
from eca_jax.training.evaluate import evaluate
from eca_jax.training.fits import check_arithmetic, check_plan, names_lack_in_training
from eca_jax.training.hooks import Hooks
from eca_jax.training.profile import Profiler, check_profile
from eca_jax.training.program import InFlight, Program, build_program, compile_step
from eca_jax.training.schedule import due
from eca_jax.training.signals import Stopped, StopSignal
from eca_jax.training.start import check_pretrained, initial_state, open_sources
from eca_jax.training.warmup import fit_warmup, keep_warmup


@dataclasses.dataclass(frozen=True)
class Result:
    """How a call of `train` ended."""

    step: int
    total_steps: int
    evaluation: dict[str, float] | None
    """The task's held-out scores at `step`; None if it stopped before or in an evaluation."""
    checkpoint: pathlib.Path | None
    """Of that step; None before the first."""
    new_steps: int = 0
    """Steps done by this call."""
    signal: int | None = None
    """What stopped the call before the end: SIGTERM, SIGINT or SIGHUP."""

    @property
    def finished(self) -> bool:
        """All steps are done, and the evaluation after the last."""
        return self.step > self.total_steps or (self.step == self.total_steps and self.evaluation is not None)


def train(
    config: Config,
    *,
    train: Rows | None = None,
    held_out: Rows | None = None,
    class_names: Sequence[str] | None = None,
    transform: Transform | None = None,
    writers: Sequence[RowWriter] = (),
    profile: range | None = None,
) -> Result:
    """Trains to the end of the configuration, from the newest checkpoint in its workdir that can be read.

    Returns early, with the state saved, when the process gets SIGTERM, SIGHUP (unless it ignores that) or a first
    SIGINT (Ctrl-C). All processes of a cluster call it; they have to have joined before (`initialize_cluster`).

    Args:
      config: the run.
      train: the training examples, instead of those that `config.data` names: anything with a length that gives
        examples by number, as `Rows` describes it. The run notes that its data came from Python. It is continued only
        with as many examples of the same classes, of which 256, evenly spaced, are the same.
      held_out: the examples to evaluate on; together with `train`.
      class_names: of `train` and `held_out`; None reads all of `train`, and calls the classes '0', '1', ...
      transform: a function of (image, rng) -> image, both uint8 (h, w, 3), that each training image passes through
        before the crop, flip and other augmentations of the configuration. The run is continued only with one of the
        same name.
      writers: functions of (values, step=...) that get each row of the log and of the evaluations, such as
        `wandb.init().log`; in process 0 alone.
      profile: the steps (from 0: `range(10, 20)` are those between step 10 and step 20 of the log) that JAX's profiler
        traces into the run's TensorBoard directory; of those that are done already, nothing.

    Raises:
      EcaJaxError: what the user can mend; more than `optim.max_skipped` steps that are not finite, with the last of
        them and the last good checkpoint.

    Example:
      >>> import dataclasses
      >>> from eca_jax.config import load_config
      >>> from eca_jax.training import train
      >>> config = load_config("digits")
      >>> model = dataclasses.replace(config.model, width_multiplier=0.125)
      >>> config = dataclasses.replace(config, model=model, epochs=2, workdir="runs/small")
      >>> result = train(config)
      model: eca_resnet18, 176,446 parameters, float32
      data: digits, 1,437 images to train on and 360 held out, 10 classes, 8 x 8 pixels
      ...
      step 44, epoch 1.96: held-out ...
      >>> result.finished, result.step
      (True, 44)
    """
    if not isinstance(config, Config):
        raise EcaJaxError(f"train: expected a Config, such as eca_jax.config.load_config('digits'), got {config!r}")
    hooks = Hooks(transform, writers)
    with (
        StopSignal() as stop,
        names_lost_processes(),
        stops_where_nothing_can_be_written(pathlib.Path(config.workdir)),
        names_lack_in_training(config),
    ):
        config, train_source, eval_source = open_sources(config, train, held_out, class_names)
        check_profile(profile, total_steps(config.epochs, len(train_source), config.batch_size))
        check_pretrained(config)
        num_classes = len(train_source.class_names)
        sizes = {
            "num_examples": len(train_source),
            "num_classes": num_classes,
            "candidates": eval_source.candidates,
        }
        config, asked = fit_warmup(config, len(train_source))
        program = build_program(config, make_mesh(), **sizes)
        check_arithmetic(config, program, program.batch_sharding, num_classes=num_classes)
        with writable_run(config) as checkpoints:
            stop.saving = checkpoints.saving
            training = Training(config, asked, program, train_source, eval_source, checkpoints, stop, hooks)
            start, state = checkpoints.restore_newest(program.abstract_state, training.check_continues)
            training.step = start
            if training.config != config:  # it goes on with the warm-up of the checkpoint
                training.program = build_program(training.config, make_mesh(), **sizes)
            evaluation = checkpoints.evaluation(start) if state is not None else None
            evaluation_due = evaluation is None and 0 < start <= training.total and training.due(start).evaluation
            if start >= training.total and not evaluation_due:
                return training.result(evaluation)
            with (
                training.open_writer(evaluation_due) as training.writer,
                Profiler(profile, config.workdir, start, training.writer) as training.profiler,
            ):
                since = None if state is None else start
                lines = describe_start(training.config, program, training.description, eval_source, step=since)
                training.writer.say("\n".join(lines))
                if state is None:
                    state = initial_state(config, program, num_classes)
                if evaluation_due:  # a signal stopped the run during it
                    evaluation = training.repeat_evaluation(state)
                if stop.requested() or start == training.total:
                    return training.result(evaluation)
                return training.run(state)


class Training:
    """One call of `train`: what it works with, and the step that it has reached."""

    def __init__(
        self,
        config: Config,
        asked: dict[str, float],
        program: Program,
        train_source: Source,
        held_out: Source,
        checkpoints: Checkpoints,
        stop: StopSignal,
        hooks: Hooks,
    ):
        self.config, self.program, self.stop, self.hooks = config, program, stop, hooks
        self.train_source, self.held_out, self.checkpoints = train_source, held_out, checkpoints
        self.description = describe_run(config, train_source) | asked | hooks.description()
        self.bad_records = BadRecords(config.data.max_bad)
        self.total = total_steps(config.epochs, len(train_source), config.batch_size)
        self.writer: Writer | NoWriter = NoWriter()
        self.profiler = Profiler(None, config.workdir, 0, self.writer)
        self.step = 0
        self.last_good = 0

    def run(self, state: TrainState) -> Result:
        """The steps after the present one, to the last; what is due between them."""
        start, metrics = self.step, None
        self.last_good = start
        compiled: dict[Any, Callable] = {}  # a step for each shape of batch
        in_flight = InFlight()
        for batch in self.batches():
            shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
            if shapes not in compiled:
                self.writer.say(f"compiling the training step{' for another shape of batch' if compiled else ''}")
                with self.stop.waiting_for("the compilation of this step"):
                    compiled[shapes] = step = compile_step(self.program.train_step, state, batch)
                check_plan(self.config, step)
                self.writer.restart_clock(self.step)  # compilation is not training
            with jax.transfer_guard_device_to_host("disallow"):
                state, loss = self.profiler(self.step, compiled[shapes], state, batch)
                in_flight.add(loss)
            self.step += 1
            self.stop.waits_for = "this step"
            self.writer.advance()
            metrics, stopping = self.after_step(state, self.stop.requested())
            if stopping:
                break
        with self.stop.waiting_for("the last checkpoint"):
            self.checkpoints.wait()
        if self.config.data.max_bad:
            self.writer.say(f"{self.bad_records.count} bad records (data.max_bad allows {self.config.data.max_bad})")
        return self.result(metrics, new_steps=self.step - start)

    def batches(self):
        """The training batches from the present step on."""
        return train_batches(
            self.train_source,
            self.hooks.examples(self.config.task),
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            steps=range(self.step, self.total),
            sharding=self.program.batch_sharding,
            num_threads=self.config.data.num_threads,
            repeats=self.config.data.repeats,
            bad_records=self.bad_records,
        )

    def after_step(self, state: TrainState, stopping: bool) -> tuple[dict[str, float] | None, bool]:
        """Writes, evaluates and saves what is due; (scores of an evaluation, whether to stop now)."""
        self.checkpoints.check_saved()
        now, metrics = self.due(self.step), None
        if not (any(now) or stopping):
            return None, False
        sums, skipped, last_skipped = jax.device_get((state.sums, state.skipped, state.last_skipped))
        if skipped > self.config.optim.max_skipped:
            raise self.not_finite(int(skipped), int(last_skipped))
        if now.log:
            row = means(sums) | {"skipped": int(skipped)}
            self.writer.train(self.step, self.epoch, self.rate(self.step), row)
        if now.evaluation and not stopping:
            metrics = self.evaluate(state)
            stopping = metrics is None
        self.bad_records.share()
        if now.save or stopping:
            self.writer.sync()
            self.checkpoints.save(self.step, state, self.description, metrics)
            self.last_good = self.step
        self.writer.restart_clock(self.step)
        return metrics, stopping

    def evaluate(self, state: TrainState) -> dict[str, float] | None:
        """Writes and returns the held-out scores; None where a signal came first."""
        try:
            with self.stop.waiting_for("the next batch of the evaluation"):
                scores = evaluate(self.config, self.program, state, self.held_out, self.bad_records, self.stop)
        except Stopped:
            return None
        self.writer.evaluation(self.step, self.epoch, scores)
        return scores

    def repeat_evaluation(self, state: TrainState) -> dict[str, float] | None:
        """Repeats an evaluation that a signal interrupted, and adds its scores to the checkpoint."""
        scores = self.evaluate(state)
        if scores is not None:
            self.writer.sync()
            self.checkpoints.add_evaluation(self.step, scores)
        return scores

    def open_writer(self, evaluation_due: bool) -> Writer | NoWriter:
        """The log of the run; the other processes of a cluster have none."""
        if jax.process_index() > 0:
            return NoWriter()
        run = pathlib.Path(self.config.workdir)
        writer = Writer(
            run,
            self.config.task,
            start=self.step,
            evaluation_due=evaluation_due,
            evaluated=self.checkpoints.evaluated(),
            total=self.total,
            batch_size=self.config.batch_size,
            also=self.hooks.writers,
        )
        write_config(run, self.config)
        return writer

    def check_continues(self, step: int) -> None:
        """Refuses a checkpoint of another configuration or other data; takes over the warm-up of its run."""
        saved = self.checkpoints.read_run(step)
        self.config, self.description = keep_warmup(self.config, self.description, saved)
        check_continues(self.checkpoints, step, self.description)

    def due(self, step: int):
        """What is to be done after a step."""
        return due(self.config, step, total=self.total, examples=len(self.train_source))

    @property
    def epoch(self) -> float:
        return self.step * self.config.batch_size / len(self.train_source)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        return float(jax.device_get(self.program.schedule(np.int32(step - 1))))

    def result(self, evaluation: dict[str, float] | None, new_steps: int = 0) -> Result:
        """At the present step."""
        checkpoint = self.checkpoints.path(self.step) if self.checkpoints.steps() else None
        return Result(self.step, self.total, evaluation, checkpoint, new_steps, self.stop.received)

    def not_finite(self, skipped: int, last: int) -> EcaJaxError:
        """The error of too many steps that changed nothing."""
        self.checkpoints.wait()
        path = self.checkpoints.path(self.last_good)
        good = f"the last good checkpoint is {path}" if self.last_good else "there is no checkpoint yet"
        return EcaJaxError(
            f"the loss or its gradient was not finite in {skipped} steps, the last at step {last} (learning rate "
            f"{self.rate(last):.4g}), and optim.max_skipped is {self.config.optim.max_skipped}; {good}. "
            "Try a lower --optim.lr, a longer --optim.warmup-epochs or --optim.clip-norm, or look for damaged images"
        )
