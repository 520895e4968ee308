"""Training from a configuration to a checkpoint, and evaluation of one.

Order of things: mesh -> data -> program (compiled functions and shardings) -> state (new or restored)
-> steps, and between them log rows, evaluations and checkpoints.
"""

import collections
import contextlib
import ctypes
import dataclasses
import functools
import itertools
import math
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from eca_jax.compiler_options import compiler_options
from eca_jax.config import Config, MixConfig, from_dict, to_dict
from eca_jax.data.bad_records import BadRecords
from eca_jax.data.loader import Batch, eval_batches, train_batches
from eca_jax.data.sources import Source, open_source
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Backbone
from eca_jax.optim import Schedule, learning_rate, make_optimizer
from eca_jax.runs.checkpoint import (
    Checkpoints,
    check_continues,
    choose_step,
    claim_directory,
    locked,
    open_run,
    stops_where_nothing_can_be_written,
    write_config,
)
from eca_jax.runs.writers import NoWriter, Writer
from eca_jax.sharding import batch_sharding, make_mesh, names_lost_processes, replicated, state_shardings
from eca_jax.training.step import (
    Network,
    Sums,
    TrainState,
    abstract_network,
    init_state,
    make_eval_step,
    make_train_step,
    param_dtype,
    pretrained_weights,
    split,
    zero_sums,
)

STEPS_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Program:
    """What a configuration becomes on a mesh: functions to call, and the shapes and places of what they take."""

    network: Network
    schedule: Schedule
    abstract_state: TrainState
    """Shapes, types and shardings."""
    shardings: TrainState
    batch_sharding: NamedSharding
    init: Callable[[], TrainState]
    train_step: jax.stages.Wrapped
    eval_step: Callable
    zero_sums: Callable[[], Sums]


def build_program(
    config: Config, mesh: Mesh, *, num_examples: int, num_classes: int, candidates: Sequence[int] | None = None
) -> Program:
    """Nothing is computed yet; each function compiles at its first call. `candidates`: see `make_eval_step`."""
    schedule = learning_rate(
        config.optim,
        num_examples=num_examples,
        batch_size=config.batch_size,
        total_steps=total_steps(config, num_examples),
    )
    optimizer = make_optimizer(config.optim, schedule)
    network = abstract_network(config, num_classes)

    def init() -> TrainState:
        return init_state(config, num_classes, optimizer)

    shapes = jax.eval_shape(init)
    shardings = state_shardings(mesh, shapes, config.sharding_rules)
    batches, scalars = batch_sharding(mesh, config.batch_size), replicated(mesh)
    options = compiler_options(mesh.devices.flat[0].platform)
    return Program(
        network=network,
        schedule=schedule,
        abstract_state=jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
        ),
        shardings=shardings,
        batch_sharding=batches,
        init=jax.jit(init, out_shardings=shardings),
        train_step=jax.jit(
            make_train_step(config, network, optimizer),
            in_shardings=(shardings, batches),
            out_shardings=(shardings, scalars),
            donate_argnums=0,
            compiler_options=options,
        ),
        eval_step=jax.jit(
            make_eval_step(network.eval, config.preprocess, param_dtype(config), candidates),
            in_shardings=(shardings.params, shardings.batch_stats, batches, scalars),
            out_shardings=scalars,
            compiler_options=options,
        ),
        zero_sums=jax.jit(zero_sums, out_shardings=scalars),
    )


def epochs_ended(step: int, num_examples: int, batch_size: int) -> int:
    """How many epochs are over after `step` steps: epoch e ends with step e * num_examples // batch_size."""
    return ((step + 1) * batch_size - 1) // num_examples


def description(config: Config, source: Source) -> dict:
    """What a checkpoint says of its run, besides the arrays."""
    return {"config": to_dict(config), "class_names": list(source.class_names), "num_examples": len(source)}


def total_steps(config: Config, num_examples: int) -> int:
    """Whole batches in `epochs` passes over the examples; a batch may reach across the end of an epoch."""
    return config.epochs * num_examples // config.batch_size


@dataclasses.dataclass(frozen=True)
class Result:
    """How a call of `train` ended."""

    step: int
    total_steps: int
    evaluation: dict[str, float] | None
    """Held-out loss, top1, top5 (0 to 1) and count at `step`; None if it stopped before or in an evaluation."""
    checkpoint: pathlib.Path | None
    """Of that step; None before the first."""
    new_steps: int = 0
    """Steps done by this call."""
    signal: int | None = None
    """What stopped the call before the end: SIGTERM or SIGINT."""

    @property
    def finished(self) -> bool:
        """All steps are done, and the evaluation after the last."""
        return self.step > self.total_steps or (self.step == self.total_steps and self.evaluation is not None)


class Due(NamedTuple):
    """What is to be done after a step."""

    log: bool
    evaluation: bool
    save: bool


def due(config: Config, step: int, *, total: int, examples: int) -> Due:
    """A function of the configuration and the step alone, so that a run which goes on does what one does at once."""
    before, after = (epochs_ended(s, examples, config.batch_size) for s in (step - 1, step))

    def every(epochs: int) -> bool:
        return after // epochs > before // epochs

    last, every_steps = step == total, config.checkpoint.every_steps
    return Due(
        log=last or step % config.log_every == 0,
        evaluation=last or every(config.eval_every_epochs),
        save=last or every(config.checkpoint.every_epochs) or (every_steps is not None and step % every_steps == 0),
    )


def train(config: Config) -> Result:
    """Trains to the end of the configuration, from the newest checkpoint in its workdir that can be read.

    Returns early, with the state saved, when the process gets SIGTERM or a first SIGINT (Ctrl-C). All processes of a
    cluster call it; they have to have joined before (`initialize_cluster`).

    Raises:
      EcaJaxError: what the user can mend; more than `optim.max_skipped` steps that are not finite, with the last of
        them and the last good checkpoint.
    """
    with StopSignal() as stop, names_lost_processes(), stops_where_nothing_can_be_written(pathlib.Path(config.workdir)):
        return _train(config, stop)


def _train(config: Config, stop: "StopSignal") -> Result:
    mesh = make_mesh()
    train_source, eval_source = _open_sources(config)
    total = total_steps(config, len(train_source))
    program = build_program(
        config,
        mesh,
        num_examples=len(train_source),
        num_classes=len(train_source.class_names),
        candidates=eval_source.candidates,
    )

    run = pathlib.Path(config.workdir)
    claim_directory(run, config)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all processes have seen the run directory")
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(locked(run))
        checkpoints = stack.enter_context(Checkpoints(run, config.checkpoint.keep))
        saved = description(config, train_source)
        start, state = checkpoints.restore_newest(
            program.abstract_state, lambda step: check_continues(checkpoints, step, saved)
        )
        evaluation = checkpoints.evaluation(start) if state is not None else None
        evaluation_due = (
            0 < start <= total
            and evaluation is None
            and due(config, start, total=total, examples=len(train_source)).evaluation
        )
        if start >= total and not evaluation_due:
            return Result(start, total, evaluation, checkpoints.path(start))
        if jax.process_index() == 0:
            writer = Writer(run, start=start, evaluation_due=evaluation_due, total=total, batch_size=config.batch_size)
            write_config(run, config)
        else:
            writer = NoWriter()
        stack.enter_context(writer)
        bad_records = BadRecords(config.data.max_bad)
        if state is None:
            state = program.init()
            if config.model.pretrained is not None:
                weights = pretrained_weights(config, len(train_source.class_names))
                state = jax.device_put(state.with_weights(*weights), program.shardings)
        else:
            writer.say(f"continuing {config.workdir} at step {start} of {total}")
        if evaluation_due:  # the run was stopped in it
            evaluation = evaluate_or_stop(config, program, state, eval_source, bad_records, stop)
            if evaluation is not None:
                writer.evaluation(start, start * config.batch_size / len(train_source), evaluation)
                writer.sync()
                checkpoints.add_evaluation(start, evaluation)
        if stop.requested() or start == total:
            checkpoint = checkpoints.path(start) if checkpoints.steps() else None
            return Result(start, total, evaluation, checkpoint, signal=stop.received)
        return _fit(
            config, program, state, train_source, eval_source, bad_records, checkpoints, writer, stop, start, total
        )


def _open_sources(config: Config) -> tuple[Source, Source]:
    """The training and the held-out examples, where one can train with them."""
    train_source = open_source(config.data.name, config.data.train_split, config.data.data_dir)
    eval_source = open_source(config.data.name, config.data.eval_split, config.data.data_dir)
    if train_source.class_names != eval_source.class_names:
        raise EcaJaxError(
            f"data set {config.data.name!r}: the splits {config.data.train_split!r} and {config.data.eval_split!r} "
            f"do not have the same classes: "
            f"{_class_difference(train_source.class_names, eval_source.class_names)}"
        )
    if len(train_source.class_names) < 2:
        raise EcaJaxError(
            f"data set {config.data.name!r} has the classes {', '.join(train_source.class_names)}; expected 2 or more"
        )
    if train_source.multi_label:
        raise EcaJaxError(
            f"data set {config.data.name!r} has several labels an image, which is only for `eca-jax evaluate`"
        )
    if total_steps(config, len(train_source)) == 0:
        raise EcaJaxError(
            f"batch_size {config.batch_size} is more than the {config.epochs * len(train_source)} examples "
            f"of {config.epochs} epochs of {config.data.train_split!r}"
        )
    return train_source, eval_source


def _fit(
    config: Config,
    program: Program,
    state: TrainState,
    train_source: Source,
    eval_source: Source,
    bad_records: BadRecords,
    checkpoints: Checkpoints,
    writer: Writer | NoWriter,
    stop: "StopSignal",
    start: int,
    total: int,
) -> Result:
    """Steps `start + 1` to `total`, and what is due between them."""
    run, examples = description(config, train_source), len(train_source)
    batches = train_batches(
        train_source,
        config.preprocess,
        seed=config.seed,
        batch_size=config.batch_size,
        steps=range(start, total),
        sharding=program.batch_sharding,
        num_threads=config.data.num_threads,
        repeats=config.data.repeats,
        bad_records=bad_records,
    )
    first = next(batches)
    train_step = compile_step(program.train_step, state, first)
    batches = itertools.chain([first], batches)
    writer.restart_clock(start)  # compilation is not training
    in_flight = InFlight()
    step, metrics, last_good = start, None, start
    for step in range(start + 1, total + 1):
        with jax.transfer_guard_device_to_host("disallow"):
            state, loss = train_step(state, next(batches))
            in_flight.add(loss)
        writer.advance()
        now = due(config, step, total=total, examples=examples)
        stopping = stop.requested()
        if not (any(now) or stopping):
            continue

        sums, skipped, last_skipped = jax.device_get((state.sums, state.skipped, state.last_skipped))
        if skipped > config.optim.max_skipped:
            raise _not_finite(config, program, checkpoints, int(skipped), int(last_skipped), last_good)
        fractional_epoch = step * config.batch_size / examples
        if now.log:
            rate = float(jax.device_get(program.schedule(np.int32(step - 1))))
            writer.train(step, fractional_epoch, rate, means(sums) | {"skipped": int(skipped)})
        metrics = None
        if now.evaluation and not stopping:
            metrics = evaluate_or_stop(config, program, state, eval_source, bad_records, stop)
            stopping = metrics is None
            if metrics is not None:
                writer.evaluation(step, fractional_epoch, metrics)
        bad_records.share()
        if now.save or stopping:
            writer.sync()
            checkpoints.save(step, state, run, metrics)
            last_good = step
        writer.restart_clock(step)
        if stopping:
            break
    checkpoints.wait()
    if config.data.max_bad:
        writer.say(f"{bad_records.count} bad records (data.max_bad allows {config.data.max_bad})")
    return Result(step, total, metrics, checkpoints.path(step), new_steps=step - start, signal=stop.received)


def compile_step(step: jax.stages.Wrapped, *args: Any) -> Callable:
    """A jitted function compiled for such arguments, and the memory that this took given back to the system.

    Else the C library keeps what the compiler has freed: 0.4 GiB after ResNet-50's step.
    """
    compiled = step.lower(*args).compile()
    with contextlib.suppress(AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    return compiled


def evaluate(
    config: Config,
    program: Program,
    state: TrainState,
    source: Source,
    bad_records: BadRecords | None = None,
    stop: "StopSignal | None" = None,
) -> dict[str, float]:
    """Means over the readable examples of `source`, each counted once: loss, top1, top5, and their count.

    Raises:
      Stopped: `stop` was requested before the end.
    """
    batches = eval_batches(
        source,
        config.preprocess,
        batch_size=config.batch_size,
        sharding=program.batch_sharding,
        num_threads=config.data.num_threads,
        bad_records=bad_records,
    )
    eval_step = functools.partial(program.eval_step, *state.evaluated)
    return mean_scores(eval_step, program.zero_sums(), batches, stop)


def evaluate_or_stop(*args) -> dict[str, float] | None:
    """`evaluate`; None once stopped."""
    try:
        return evaluate(*args)
    except Stopped:
        return None


class Stopped(Exception):
    """A signal ended an evaluation."""


def mean_scores(
    eval_step: Callable[[Batch, Sums], Sums], sums: Sums, batches: Iterable[Batch], stop: "StopSignal | None" = None
) -> dict[str, float]:
    """Means over the examples of the batches, and their count."""
    in_flight = InFlight()
    for batch in batches:
        sums = eval_step(batch, sums)
        in_flight.add(sums["count"])
        if stop is not None and stop.requested():
            raise Stopped
    host_sums = jax.device_get(sums)
    if host_sums["count"] == 0:
        raise EcaJaxError("no image of the split has a label")
    return means(host_sums) | {"count": float(host_sums["count"])}


def evaluate_run(
    run: str,
    *,
    which: str = "latest",
    data: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
) -> tuple[int, dict[str, float]]:
    """Scores a checkpoint of a run on the held-out split of its configuration, or on other data: (step, metrics).

    The batches are as large as in training, rounded up to what the devices here can share.
    """
    with open_run(run) as checkpoints:
        step = choose_step(checkpoints, which)
        saved = checkpoints.read_run(step)
        config, class_names = from_dict(saved["config"]), tuple(saved["class_names"])
        if data is None and split is None:
            split = config.data.eval_split
        source = open_source(data or config.data.name, split, data_dir or config.data.data_dir)
        check_classes(source, class_names, f"the run {run}")
        mesh = make_mesh()
        batch_size = -(-config.batch_size // mesh.size) * mesh.size
        config = dataclasses.replace(
            config,
            batch_size=batch_size,
            model=dataclasses.replace(config.model, batch_norm_group=None),
            mix=MixConfig(),
            optim=dataclasses.replace(config.optim, accumulate=1),
        )
        program = build_program(
            config,
            mesh,
            num_examples=saved["num_examples"],
            num_classes=len(class_names),
            candidates=source.candidates,
        )
        state = checkpoints.read_state(step, program.abstract_state)
        return step, evaluate(config, program, state, source, BadRecords(config.data.max_bad))


@dataclasses.dataclass(frozen=True)
class Run:
    """A checkpoint of a run, on one device."""

    model: Backbone
    """In evaluation mode."""
    momentum: nnx.State | None
    """SGD's, a tree like the model's parameters; None of another optimiser."""
    config: Config
    class_names: tuple[str, ...]
    num_examples: int
    """Of the training split."""
    step: int
    metrics: dict[str, float] | None
    """Of the evaluation at that step."""


def read_run(run: str | pathlib.Path, which: str = "latest") -> Run:
    """Everything that a checkpoint holds and another framework could use."""
    with open_run(run) as checkpoints:
        step = choose_step(checkpoints, which)
        saved = checkpoints.read_run(step)
        config, class_names = from_dict(saved["config"]), tuple(saved["class_names"])
        program = _single_device_program(config, saved["num_examples"], len(class_names))
        state = checkpoints.read_state(step, program.abstract_state)
        metrics = checkpoints.evaluation(step)
    model = nnx.merge(program.network.eval, *state.evaluated)
    model.preprocess = config.preprocess
    momentum = optax.tree_utils.tree_get(state.opt_state, "trace") if config.optim.name == "sgd" else None
    return Run(model, momentum, config, class_names, saved["num_examples"], step, metrics)


def load_run(run: str | pathlib.Path, which: str = "latest") -> tuple[Backbone, Config, tuple[str, ...]]:
    """The model of a checkpoint in evaluation mode, the configuration and the class names of its run."""
    found = read_run(run, which)
    return found.model, found.config, found.class_names


def write_run(
    model: Backbone, momentum: nnx.State | None, config: Config, *, step: int, class_names: Sequence[str], examples: int
) -> pathlib.Path:
    """A run in `config.workdir` that `train` continues at `step`, from weights of elsewhere; returns its checkpoint."""
    program = _single_device_program(config, examples, len(class_names))
    state = program.init()
    _, params, batch_stats = split(model)
    opt_state = optax.tree_utils.tree_set(state.opt_state, count=jnp.asarray(step, jnp.int32))
    if momentum is not None:
        opt_state = optax.tree_utils.tree_set(opt_state, trace=momentum)
    state = dataclasses.replace(
        state.with_weights(params, batch_stats), step=jnp.asarray(step, jnp.int32), opt_state=opt_state
    )
    run = pathlib.Path(config.workdir)
    if run.is_dir() and any(run.iterdir()):
        raise EcaJaxError(f"{run} is not empty; expected a new directory for the run")
    claim_directory(run, config)
    with Checkpoints(run, config.checkpoint.keep) as checkpoints:
        saved = {"config": to_dict(config), "class_names": list(class_names), "num_examples": examples}
        checkpoints.save(step, state, saved, None)
        checkpoints.wait()
        return checkpoints.path(step)


def _single_device_program(config: Config, num_examples: int, num_classes: int) -> Program:
    return build_program(config, make_mesh(jax.local_devices()[:1]), num_examples=num_examples, num_classes=num_classes)


def means(sums: Sums) -> dict[str, float]:
    """Sums over examples -> their means, as Python floats; NaN over no example (all steps were skipped)."""
    count = float(sums["count"]) or math.nan
    return {name: float(sums[name]) / count for name in ("loss", "top1", "top5")}


class InFlight:
    """Keeps the host from running far ahead of the devices: waits for what was added a few steps ago, reads nothing."""

    def __init__(self):
        self._queue = collections.deque()

    def add(self, result: jax.Array) -> None:
        self._queue.append(result)
        if len(self._queue) > STEPS_IN_FLIGHT:
            self._queue.popleft().block_until_ready()


class StopSignal:
    """Notices SIGTERM (a preemption) and the first Ctrl-C while it is entered; a second Ctrl-C interrupts at once.

    In a cluster JAX's own preemption service listens for SIGTERM, and all processes agree on the step.
    """

    def __init__(self):
        self.received: int | None = None
        self._previous = {}
        self._asked = 0

    def __enter__(self) -> "StopSignal":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
            print("stopping after this step; Ctrl-C once more stops at once", file=sys.stderr)

    def requested(self) -> bool:
        """Whether to stop now. All processes of a cluster ask at the same points and get the same answers."""
        self._asked += 1
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self._asked):
            self.received = signal.SIGTERM
        return self.received is not None


def check_classes(source: Source, expected: tuple[str, ...], owner: str) -> None:
    """Refuses data whose classes are not, in this order, those that the owner was trained for."""
    if source.class_names != expected:
        raise EcaJaxError(
            f"data set {source.name!r}, split {source.split!r}, has other classes than {owner}: "
            f"{_class_difference(expected, source.class_names)}"
        )


def _class_difference(expected: tuple[str, ...], found: tuple[str, ...]) -> str:
    missing, new = sorted({*expected} - {*found}), sorted({*found} - {*expected})
    if not missing and not new:
        return "they are in another order"
    return "; ".join(
        f"{len(names)} only in the {which}: {', '.join(names[:5])}"
        for which, names in (("first", missing), ("second", new))
        if names
    )


def _not_finite(
    config: Config, program: Program, checkpoints: Checkpoints, skipped: int, last: int, last_good: int
) -> EcaJaxError:
    rate = float(jax.device_get(program.schedule(np.int32(last - 1))))
    checkpoints.wait()
    good = f"the last good checkpoint is {checkpoints.path(last_good)}" if last_good else "there is no checkpoint yet"
    return EcaJaxError(
        f"the loss or its gradient was not finite in {skipped} steps, the last at step {last} (learning rate "
        f"{rate:.4g}), and optim.max_skipped is {config.optim.max_skipped}; {good}. "
        "Try a lower --optim.lr, a longer --optim.warmup-epochs or --optim.clip-norm, or look for damaged images"
    )
