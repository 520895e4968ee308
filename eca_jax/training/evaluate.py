"""Scores: of a state in training, of a checkpoint of a run, of weights that come without a run."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from eca_jax.compiler_options import compiler_options
from eca_jax.config import Config, from_dict
from eca_jax.convert.pretrained import load
from eca_jax.data.bad_records import BadRecords
from eca_jax.data.config import DataConfig
from eca_jax.data.loader import eval_batches
from eca_jax.data.python_records import Rows, python_source
from eca_jax.data.records import PYTHON, Source, check_classes, shared_records
from eca_jax.data.sources import open_source
from eca_jax.data.splits import split_names
from eca_jax.errors import EcaJaxError
from eca_jax.memory import Fitting
from eca_jax.runs.directory import choose_step, open_run
from eca_jax.runs.state import TrainState, split as split_model
from eca_jax.sharding import batch_sharding, make_mesh, replicated
from eca_jax.tasks.base import Batch, Sums, Task, zero_sums
from eca_jax.training.examples import EvaluatedExamples
from eca_jax.training.fits import EVALUATION_REMEDIES, check_evaluation, describe_evaluation, names_lack_in_evaluation
from eca_jax.training.program import InFlight, Program, build_program
from eca_jax.training.signals import Stopped, StopSignal
from eca_jax.training.step import make_eval_step

EXAMPLES = 64
"""A device's share of a batch, where no run says it."""


@dataclasses.dataclass(frozen=True)
class Start:
    """What is known of an evaluation before its first image is read."""

    preprocess: str
    """How images are made, in a line."""
    images: int
    training_images: int = 0
    """Those of them that the run was trained on."""


def evaluate(
    config: Config,
    program: Program,
    state: TrainState,
    source: Source,
    bad_records: BadRecords | None = None,
    stop: StopSignal | None = None,
    *,
    batch_size: int | None = None,
    each: Callable[[EvaluatedExamples], object] | None = None,
) -> dict[str, float]:
    """The task's scores over the readable examples of `source`, each counted once; `batch_size` as of `build_program`.

    `each` is given what is said of each example, at the end; the program has to be one with `each` then.

    Raises:
      Stopped: `stop` was requested before the end.
      EcaJaxError: there is no memory left.
    """
    batch_size = batch_size or config.batch_size
    batches = eval_batches(
        source,
        config.task,
        batch_size=batch_size,
        sharding=program.batch_sharding,
        num_threads=config.data.num_threads,
        bad_records=bad_records,
    )
    eval_step = functools.partial(program.eval_step, *state.evaluated)
    with names_lack_in_evaluation(config.task, config.model.name, batch_size):
        return score(config.task, eval_step, program.zero_sums(), batches, source, stop=stop, each=each)


def score(
    task: Task,
    eval_step: Callable[[Batch, Sums], tuple[Sums, Any]],
    sums: Sums,
    batches: Iterable[Batch],
    source: Source,
    *,
    stop: StopSignal | None = None,
    each: Callable[[EvaluatedExamples], object] | None = None,
) -> dict[str, float]:
    """The task's scores over all batches of the source; every process gets the same. `each` is as of `evaluate`."""
    in_flight, outputs = InFlight(), []
    for batch in batches:
        sums, output = eval_step(batch, sums)
        if output is not None:
            outputs.append(jax.device_get(output))
        in_flight.add(sums["count"])
        if stop is not None and stop.requested():
            raise Stopped
    scores = task.scores(jax.device_get(sums), outputs)
    if task.best not in scores:
        raise EcaJaxError(f"the task {task.name!r}: its best score, {task.best!r}, is none of {', '.join(scores)}")
    if each is not None:
        each(EvaluatedExamples.joined(task, source, outputs))
    return scores


def evaluate_run(
    run: str,
    *,
    which: str = "latest",
    data: str | Rows | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    keys: tuple[str | None, str | None] = (None, None),
    preprocess: Mapping[str, Any] | None = None,
    started: Callable[[Start], object] = lambda start: None,
    each: Callable[[EvaluatedExamples], object] | None = None,
) -> tuple[int, Task, dict[str, float]]:
    """Scores a checkpoint of a run on the held-out split of its configuration, or on other data: (step, task, scores).

    `data` is the name of a data set, or examples in Python, as `train` takes them (`Rows`), with the numbers of
    the run's classes. A run whose data came from Python has no data of its own, so `data` has to be given.

    The batches are as large as in training, rounded up to what the devices here can share. `keys` choose among several
    features of a TFDS data set, as in `open_source`. `preprocess` has the fields that are not to be the run's
    (`PreprocessConfig.for_evaluation`); `started` is called before an image is read, and `each` at the end, with what
    is said of each example.

    Example:
      After `eca-jax train`:

      >>> from eca_jax.training import evaluate_run
      >>> step, task, scores = evaluate_run("runs/digits")
      >>> int(scores["count"])
      360
    """
    with open_run(run) as checkpoints:
        step = choose_step(checkpoints, which)
        saved = checkpoints.read_run(step)
        config, class_names = from_dict(saved["config"]), tuple(saved["class_names"])
        config = dataclasses.replace(config, task=config.task.with_preprocess(preprocess or {}))
        if data is None and split is None:
            split = config.data.eval_split
        own = (None, None) if isinstance(data, str) else config.data.keys
        keys, data_dir = (keys[0] or own[0], keys[1] or own[1]), data_dir or config.data.data_dir
        source = _open(config.data.name if data is None else data, split, data_dir, keys, class_names)
        check_classes(source, class_names, f"the run {run}")
        seen = _training_images(config, source, data_dir, saved.get("data"))
        started(Start(config.task.preprocess.describe_evaluation(), len(source), seen))
        mesh = make_mesh()
        batch_size = -(-config.batch_size // mesh.size) * mesh.size
        program = build_program(
            config,
            mesh,
            num_examples=saved["num_examples"],
            num_classes=len(class_names),
            candidates=source.candidates,
            batch_size=batch_size,
            each=each is not None,
        )
        threads = config.data.num_threads
        check_evaluation(config.task, config.model.name, program.batch_sharding, batch_size=batch_size, threads=threads)
        state = checkpoints.read_state(step, program.abstract_state)
        bad_records = BadRecords(config.data.max_bad)
        scores = evaluate(config, program, state, source, bad_records, batch_size=batch_size, each=each)
        return step, config.task, scores


def _open(
    data: str | Rows,
    split: str | None,
    data_dir: str | None,
    keys: tuple[str | None, str | None],
    class_names: tuple[str, ...],
) -> Source:
    """A data set by its name; or what is given in Python, with the numbers of the classes."""
    if isinstance(data, str):
        return open_source(data, split, data_dir, keys)
    return python_source(data, split or "held_out", class_names, keys)


def _training_images(config: Config, source: Source, data_dir: str | None, fingerprint: str | None) -> int:
    """How many examples of a source a run with this configuration, and data of this fingerprint, is trained on."""
    data = config.data
    if source.name == PYTHON:
        return len(source) if source.fingerprint() == fingerprint else 0
    if source.name.rstrip("/") != data.name.rstrip("/") or split_names(source.split).isdisjoint(
        split_names(data.train_split)
    ):
        return 0
    return shared_records(open_source(source.name, data.train_split, data_dir or data.data_dir, data.keys), source)


def evaluate_weights(
    weights: str,
    data: str | Rows,
    *,
    name: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    keys: tuple[str | None, str | None] = (None, None),
    preprocess: Mapping[str, Any] | None = None,
    started: Callable[[Start], object] = lambda start: None,
    each: Callable[[EvaluatedExamples], object] | None = None,
) -> tuple[Task, dict[str, float]]:
    """Scores weights (see `load_pretrained`; `name` is the model expected) on a data set, with their own preprocessing.

    `data` is as of `evaluate_run`. `keys` choose among several features of a TFDS data set, as in `open_source`.
    `preprocess` has the fields that are not to be theirs (`PreprocessConfig.for_evaluation`); `started` and `each` are
    as of `evaluate_run`.

    Returns: their task, and its scores over the held-out split if `split` is None.

    Raises:
      EcaJaxError: as `load_pretrained` and `open_source`; the data set has other classes.
    """
    loaded = load(weights, name=name)
    source = _open(data, split, data_dir, keys, loaded.names)
    if isinstance(data, str):
        loaded.check_data(source, weights)
    task = loaded.task.with_preprocess(preprocess or {})
    started(Start(loaded.describe_preprocess(task.preprocess), len(source)))
    mesh = make_mesh()
    batch_size = EXAMPLES * mesh.size
    batches, scalars = batch_sharding(mesh, batch_size), replicated(mesh)
    architecture, threads = loaded.model.architecture.name, DataConfig.num_threads
    check_evaluation(task, architecture, batches, batch_size=batch_size, threads=threads)
    graphdef, params, batch_stats = split_model(loaded.model)
    eval_step = Fitting(
        jax.jit(
            make_eval_step(task, graphdef, jnp.float32, source.candidates, each=each is not None),
            in_shardings=(scalars, scalars, batches, scalars),
            out_shardings=scalars,
            compiler_options=compiler_options(),
        ),
        describe_evaluation(task, architecture, batch_size),
        EVALUATION_REMEDIES,
    )
    images = eval_batches(source, task, batch_size=batch_size, sharding=batches, num_threads=threads)
    step = functools.partial(eval_step, params, batch_stats)
    with names_lack_in_evaluation(task, architecture, batch_size):
        return task, score(task, step, zero_sums(task.sums), images, source, each=each)
