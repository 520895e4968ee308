"""A few steps of a run traced with JAX's profiler, where TensorBoard's profiler finds them."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax

from eca_jax.errors import EcaJaxError
from eca_jax.runs.directory import TENSORBOARD
from eca_jax.runs.writers import NoWriter, Writer


def check_profile(profile: range | None, total: int) -> None:
    """Refuses steps that are none, or that a run of `total` steps does not have."""
    if profile is None:
        return
    if not isinstance(profile, range) or profile.step != 1 or not 0 <= profile.start < profile.stop:
        raise EcaJaxError(f"profile: expected steps such as range(10, 20), got {profile!r}")
    if profile.stop > total:
        raise EcaJaxError(f"profile: {_words(profile)} are beyond the {total} steps of the run")


class Profiler:
    """Calls the steps of a run, and traces those that are asked for: entered around the run, it ends the trace with it.

    Steps count from 0, as of `range`. A trace begins when all that came before is done, and ends when its last step is,
    so that it has the whole of its steps and, as a step is compiled before it is called, no compilation. In a cluster
    process 0 alone traces: the events of its host and its devices, into the directory that it alone writes to.
    """

    def __init__(self, profile: range | None, run: str, start: int, writer: Writer | NoWriter):
        """`start` is the step that the run continues from: steps that are done already are left out."""
        asked = profile if profile is not None and jax.process_index() == 0 else range(0)
        self._steps = range(max(start, asked.start), asked.stop)
        self._directory, self._writer = pathlib.Path(run) / TENSORBOARD, writer
        self._traced: range | None = None  # of the trace that is open
        if asked and not self._steps:
            writer.say(f"profile: nothing is traced: {_words(asked)} are done, the run goes on at {start}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        with contextlib.suppress(*([Exception] if kind else [])):  # what went wrong first is already on its way
            self._end()

    def __call__(self, step: int, function: Callable, *args: Any) -> Any:
        """`function(*args)`, which is this step of the run."""
        if step not in self._steps:
            return function(*args)
        if self._traced is None:
            jax.block_until_ready(args)
            self._begin(step)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = function(*args)
        self._traced = range(self._steps.start, step + 1)
        if self._traced == self._steps:
            jax.block_until_ready(result)
            self._end()
            self._writer.restart_clock(step)  # writing a trace is not training
        return result

    def _begin(self, step: int) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of every thread: slower steps, and traces too large to be shown
        with _named():
            jax.profiler.start_trace(self._directory, profiler_options=options)
        self._traced = range(step, step)

    def _end(self) -> None:
        """Writes the trace that is open, if one is."""
        if self._traced is None:
            return
        traced, self._traced = self._traced, None
        with _named():
            jax.profiler.stop_trace()
        self._writer.say(f"profile: {_words(traced)} are in {self._directory}, for TensorBoard's profiler")


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """What the profiler cannot do (it runs already, the disk is full) as an `EcaJaxError`."""
    try:
        yield
    except RuntimeError as error:
        raise EcaJaxError(f"profile: {error}") from error


def _words(steps: range) -> str:
    return f"steps {steps.start}:{steps.stop}"
