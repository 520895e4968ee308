"""The checkpoints of a run. The only file that imports Orbax.

RUN/checkpoints/STEP/           `state` (arrays), `run` (configuration, class names, checksums), `evaluation`
RUN/checkpoints-damaged/STEP/   checkpoints that could not be read when the run continued from an earlier one

A checkpoint is written under a temporary name and renamed when it is complete. So a directory with the name of a step
is complete, whenever the process dies. The run directory therefore has to be on a file system with an atomic rename (a
disk, NFS, Lustre, a bucket with a hierarchical namespace). A mounted flat bucket renames file by file; an incomplete
checkpoint there has wrong checksums and is skipped like a damaged one.
"""

import asyncio
import contextlib
import functools
import json
import logging
import math
import os
import pathlib
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from orbax.checkpoint import checkpoint_managers

from eca_jax.errors import EcaJaxError
from eca_jax.sharding import replicated

CHECKPOINTS = "checkpoints"
DAMAGED = "checkpoints-damaged"
SEAL = "crc32"

# Messages of Orbax that are not needed. Readers are read-only on purpose. Errors of the threads that save are also
# raised by `check_saved`, `wait` or the next `save`. For a damaged checkpoint, Orbax raises the error of one array and
# leaves those of the others to asyncio; metadata that it cannot parse are of no use to a reader.
SAID_ELSEWHERE = re.compile(
    "read_only=True|directory is read only|_SignalingThread.* raised an exception|in background save thread"
    "|Save Finalize thread .* failed|exception was never retrieved\nfuture: .*(async_deserialize|OCDBT database)"
    "|Failed to (json parse|read) Metadata file|metadata contains unknown key"
)
for _logger in (absl.logging.get_absl_logger(), logging.getLogger("asyncio")):
    _logger.addFilter(lambda record: not SAID_ELSEWHERE.search(record.getMessage()))

DETAILS = "See full TensorStore details:"
"""The beginning of what Orbax adds to an error of TensorStore: the name of a method, then pages of specification."""


def _show(unraisable: Any, show: Callable[[Any], Any] = sys.unraisablehook) -> None:
    """A `sys.unraisablehook` that hides the messages of TensorStore's threads after one of their writes has failed.

    Orbax then closes its event loop, and each write that ends later complains about that. The hook is never removed,
    because a thread may call it at any moment.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        show(unraisable)


sys.unraisablehook = _show


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that waits for its tasks before it closes.

    If Orbax cannot read one array, it closes the loop while TensorStore's threads still read the others. A read that
    ends later would call into a closed loop, which has crashed a process.
    """

    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


class DamagedCheckpoint(EcaJaxError):
    """A checkpoint that cannot be read, or whose checksums are wrong."""

    def __init__(self, path: pathlib.Path, why: str, others: Sequence[int]):
        self.why = " ".join(why.partition(DETAILS)[0].split())[:200]
        super().__init__(
            f"cannot read the checkpoint {path}: it is damaged or not of this version of eca_jax ({self.why}); "
            f"the others there are of steps {others or '(none)'}"
        )


class NotSaved(Exception):
    """A checkpoint could not be written; the error that caused this one says why."""

    def __init__(self, step: int, size: int):
        super().__init__(f"the checkpoint of step {step} is not saved")
        self.step, self.size = step, size
        """`size` in bytes, before compression."""


class Checkpoints:
    """Saves asynchronously; keeps the newest `keep` checkpoints and the best by the held-out `score`.

    Use it as a context manager.
    """

    def __init__(self, run: str | pathlib.Path, keep: int = 1, *, score: str, read_only: bool = False):
        self._score = score
        self.directory = pathlib.Path(run).absolute() / CHECKPOINTS
        self._manager = ocp.CheckpointManager(
            epath.Path(self.directory),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [checkpoint_managers.LatestN(keep), _Preserve(lambda step: step in {self.best(), *self._unread})]
                ),
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )
        # Each process reads by itself, without Orbax's barriers: if one fails, the others must not wait for it.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix=f"process {jax.process_index()}",
        )
        self._reader = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
                state=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
                run=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
                evaluation=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
            ),
            multiprocessing_options=alone,
        )
        self._being_saved: NotSaved | None = None
        self._scores: dict[int, float] = {}
        self._unread: set[int] = set()  # could have been the best, so they are not deleted
        for step in self.steps():
            with contextlib.suppress(DamagedCheckpoint):
                self._remember(step, self.evaluation(step))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is not None and issubclass(kind, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
            return  # a save may wait for a process that has died
        self._reader.close()
        try:
            self._manager.close()
        except Exception:
            if kind is None:
                raise  # else what went wrong first is already on its way

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step with the highest held-out score; the newest of equal ones."""
        return max(self._scores, key=lambda step: (self._scores[step], step), default=None)

    def evaluated(self) -> list[int]:
        """The steps whose checkpoints have an evaluation."""
        return sorted(self._scores)

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def path(self, step: int) -> pathlib.Path:
        return self.directory / str(step)

    def _remember(self, step: int, evaluation: dict[str, float] | None) -> None:
        if evaluation is not None:
            score = evaluation.get(self._score, -math.inf)
            self._scores[step] = score if score == score else -math.inf  # NaN is never the best

    def save(self, step: int, state: Any, run: dict, evaluation: dict[str, float] | None) -> None:
        """Starts to write a checkpoint, while training goes on. It is complete or absent."""
        items = {
            "state": ocp.args.StandardSave(state),
            "run": ocp.args.JsonSave(seal(run | {"checksums": checksums(state)})),
        }
        if evaluation is not None:
            items["evaluation"] = ocp.args.JsonSave(seal(evaluation))
        self.wait()
        self._remember(step, evaluation)
        self._being_saved = NotSaved(step, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        with self._names_the_save():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def add_evaluation(self, step: int, evaluation: dict[str, float]) -> None:
        """Adds its evaluation to a checkpoint that was saved without one; it is complete or absent."""
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            path = epath.Path(self.path(step) / "evaluation")
            checkpointer.save(path, args=ocp.args.JsonSave(seal(evaluation)), force=True)
        self._remember(step, evaluation)

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._manager.is_saving_in_progress()

    def check_saved(self) -> None:
        """Raises the error of the last `save` if it has failed; does not wait.

        In a cluster, the next `save` raises it, because asking here would wait for the other processes.
        """
        if self._being_saved and jax.process_count() == 1 and not self.saving():
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is being written.

        Raises:
          NotSaved: the last `save` failed.
        """
        with self._names_the_save():
            self._manager.wait_until_finished()
        self._being_saved = None

    @contextlib.contextmanager
    def _names_the_save(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # TensorStore's is a ValueError
            if self._being_saved is None:
                raise
            raise self._being_saved from error

    def evaluation(self, step: int) -> dict[str, float] | None:
        """The scores of the evaluation at that step; None if the checkpoint was saved without one."""
        if not (self.path(step) / "evaluation").is_dir():
            return None
        return self._unsealed(step, self._read(step, evaluation=ocp.args.JsonRestore()).evaluation)

    def read_run(self, step: int) -> dict:
        """Configuration, class names and checksums, without the arrays.

        Raises:
          DamagedCheckpoint: it is damaged, or it contains another step than its directory's name says.
        """
        run = self._unsealed(step, self._read(step, run=ocp.args.JsonRestore()).run)
        missing = [key for key in ("config", "class_names", "num_examples", "checksums") if key not in run]
        if missing:
            raise self._damaged(step, f"does not say its {', '.join(missing)}")
        held = run["checksums"].get("step")  # of one number, the first half of the checksum is the number
        if held is not None and int(held[:8], 16) != step:
            raise self._damaged(step, f"it holds step {int(held[:8], 16)}: the directory was renamed or copied")
        return run

    def read_state(self, step: int, abstract_state: Any) -> Any:
        """The arrays, with the shardings of `abstract_state`, whatever devices they were saved from.

        Raises:
          DamagedCheckpoint: it is damaged, even in a single bit.
        """
        saved = self.read_run(step)["checksums"]
        state = self._read(step, state=ocp.args.StandardRestore(abstract_state)).state
        wrong = [name for name, value in checksums(state).items() if saved.get(name) != value]
        if wrong:
            raise self._damaged(step, f"checksum of {wrong[0]}")
        return state

    def restore_newest(self, abstract_state: Any, check: Callable[[int], None]) -> tuple[int, Any]:
        """(step, state) of the newest checkpoint that every process can read; (0, None) if there are none.

        Newer ones are moved aside, with a warning. `check` may refuse a step before its arrays are read.

        Raises:
          EcaJaxError: there are checkpoints, and none can be read.
        """
        why, steps = "", self.steps()
        for step in reversed(steps):
            state, here = None, "another process could not read it"
            try:
                check(step)
                self.evaluation(step)
                state = self.read_state(step, abstract_state)
            except DamagedCheckpoint as damage:
                here = damage.why
            if _all_processes(state is not None):
                self._set_aside([newer for newer in steps if newer > step], why)
                return step, state
            self._unread.add(step)
            why = why or here
        if steps:
            raise self._damaged(steps[-1], why)
        return 0, None

    def _set_aside(self, steps: Sequence[int], why: str) -> None:
        """Moves checkpoints that could not be read; `why` is the reason for the last."""
        if not steps:
            return
        if jax.process_index() == 0:
            place = self.directory.with_name(DAMAGED)
            place.mkdir(exist_ok=True)
            for step in steps:
                target = place / str(step)
                for n in range(1, 1000):
                    if not target.exists():
                        break
                    target = place / f"{step}.{n}"
                os.replace(self.path(step), target)
            error = self._damaged(steps[-1], why)
            print(f"warning: {error}; moved {', '.join(map(str, steps))} to {place}", file=sys.stderr, flush=True)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are moved aside")
        self._manager.reload()
        for step in steps:
            self._scores.pop(step, None)
            self._unread.discard(step)

    def _read(self, step: int, **items) -> Any:
        if step not in self.steps():
            raise EcaJaxError(f"{self.directory} has no checkpoint of step {step}; there are {self.steps() or 'none'}")
        try:
            with mock.patch.object(asyncio, "new_event_loop", _Loop):
                return self._reader.restore(epath.Path(self.path(step)), args=ocp.args.Composite(**items))
        except (jax.errors.JaxRuntimeError, MemoryError):
            raise  # of the devices, not of the files
        except Exception as error:  # whatever Orbax and TensorStore make of damaged bytes: there is no common class
            raise self._damaged(step, f"{type(error).__name__}: {error}") from error

    def _unsealed(self, step: int, values: Any) -> dict:
        if not isinstance(values, dict) or SEAL not in values:
            raise self._damaged(step, "it has no checksum")
        if seal(values) != values:
            raise self._damaged(step, "checksum of its JSON")
        return {key: value for key, value in values.items() if key != SEAL}

    def _damaged(self, step: int, why: str) -> DamagedCheckpoint:
        self._unread.add(step)
        others = [other for other in self.steps() if other not in self._unread]
        return DamagedCheckpoint(self.path(step), why, others)


class _Preserve(checkpoint_managers.PreservationPolicy):
    """Keeps the steps for which a function returns True."""

    def __init__(self, chosen: Callable[[int], bool]):
        self._chosen = chosen

    def should_preserve(self, checkpoints, *, context) -> Sequence[bool]:
        return [self._chosen(checkpoint.step) for checkpoint in checkpoints]


def seal(values: dict) -> dict:
    """The values (of JSON) with the CRC-32 of their text; sealing twice changes nothing."""
    values = {key: value for key, value in values.items() if key != SEAL}
    return values | {SEAL: zlib.crc32(json.dumps(values, sort_keys=True).encode())}


def checksums(tree: Any) -> dict[str, str]:
    """A 64-bit checksum of each array by its path; it does not depend on the devices that hold the array.

    The storage of a checkpoint does not notice if a bit in an array changes (OCDBT checks only its own tables), and
    returns other numbers. The checksum is computed on the devices, so nothing has to be read twice, and everything
    between the memory of two runs is covered.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    shardings = [getattr(leaf, "sharding", None) for _, leaf in leaves]
    mesh = next((sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)), None)
    sums = jax.device_get(_checksum_function(mesh)([leaf for _, leaf in leaves]))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): "".join(f"{part:08x}" for part in np.asarray(row))
        for (path, _), row in zip(leaves, sums, strict=True)
    }


@functools.cache
def _checksum_function(mesh: Mesh | None) -> Callable:
    """The jitted checksum, with its result on every device of the mesh so that every process can read it."""
    everywhere = None if mesh is None else replicated(mesh)
    return jax.jit(lambda arrays: jnp.stack([_checksum(array) for array in arrays]), out_shardings=everywhere)


def _checksum(array: jax.Array) -> jax.Array:
    """Two sums modulo 2^32 over the words of an array, uint32 (2,): a plain one, and one weighted by odd positions.

    One changed bit always changes the first sum; words that are exchanged change the second.
    """
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    width = min(array.dtype.itemsize, 4)
    words = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * width}")).astype(jnp.uint32)
    position, stride = jnp.ones((), jnp.uint32), 2
    for axis in reversed(range(words.ndim)):
        position += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.stack([words.sum(dtype=jnp.uint32), (words * position).sum(dtype=jnp.uint32)])


def _all_processes(value: bool) -> bool:
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(np.asarray(value)).all())
