"""Writes a data set shard by shard, so that an interrupted preparation can continue.

An unfinished data set is never taken for a complete one: shards are written to a directory `.incomplete.VERSION`, each
under a temporary name until it is complete. The directory gets its final name when it contains everything.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import tensorflow_datasets as tfds
import tqdm
from tensorflow_datasets.core.file_adapters import ADAPTER_FOR_FORMAT

from eca_jax.errors import EcaJaxError

ARRAY_RECORD = tfds.core.FileFormat.ARRAY_RECORD
ADAPTER = ADAPTER_FOR_FORMAT[ARRAY_RECORD]
ORIGIN = "origin.json"
THREADS = 4
"""The threads only overlap waiting for the disk; everything else runs in Python, one thread at a time."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a data set that is to be written."""

    file: str
    """Its name."""
    length: int
    """Number of records."""
    size: int
    """The approximate number of bytes."""
    records: Callable[[], Iterator[bytes]]


def write_data_set(
    target: pathlib.Path, shards: Sequence[Shard], *, origin: dict, finish: Callable[[pathlib.Path], None]
) -> None:
    """Writes the shards to the directory `target`; continues an earlier call that was interrupted.

    Args:
      origin: describes the input of the shards, for JSON. If it differs, unfinished shards are not continued.
      finish: writes the other files of the directory, before it gets its name.

    Raises:
      EcaJaxError: the disk is too small, another process writes the data set, or the unfinished shards have another
        origin; also the errors of `records`.
    """
    work = target.with_name(f".incomplete.{target.name}")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EcaJaxError(
            f"cannot make the directory {work} ({error.strerror}); choose another data directory"
        ) from None
    with _locked(work):
        _claim(work, origin)
        pending = [shard for shard in shards if not _is_whole(work / shard.file, shard.length)]
        _check_disk(work, sum(shard.size for shard in pending))
        with tqdm.tqdm(total=len(shards), initial=len(shards) - len(pending), unit="shard", desc=target.name) as bar:
            for _ in _in_threads(lambda shard: _write_shard(work, shard), pending):
                bar.update()
        finish(work)
        (work / ORIGIN).unlink()
        os.rename(work, target)


def _write_shard(work: pathlib.Path, shard: Shard) -> None:
    partial = work / f"{shard.file}.partial"
    try:
        ADAPTER.write_examples(partial, enumerate(shard.records()))
    except (EcaJaxError, OSError):
        raise
    except Exception as error:  # ArrayRecord has no exception of its own
        raise EcaJaxError(f"cannot write {partial}: {error}; the same command continues") from error
    if not _is_whole(partial, shard.length):
        raise EcaJaxError(f"{partial} is not what was written; is the disk full? The same command continues")
    os.rename(partial, work / shard.file)


def _is_whole(file: pathlib.Path, length: int) -> bool:
    """Whether the file is complete: its end says that it has so many records."""
    try:
        return ADAPTER.num_examples(file) == length
    except Exception:  # it is not there, or is no ArrayRecord
        return False


def _in_threads(function: Callable[[Shard], None], shards: Sequence[Shard]) -> Iterator[None]:
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield from pool.map(function, shards)
    finally:  # after an error nothing new is begun
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _locked(work: pathlib.Path) -> Iterator[None]:
    descriptor = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise EcaJaxError(f"another process is writing {work}; wait for it, or choose another data directory") from None
    finally:
        os.close(descriptor)


def _claim(work: pathlib.Path, origin: dict) -> None:
    text = json.dumps(origin, sort_keys=True)
    file = work / ORIGIN
    if file.is_file() and file.read_text() != text:
        raise EcaJaxError(f"{work} was begun from other files than these; remove it to begin anew")
    file.write_text(text)


def _check_disk(directory: pathlib.Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise EcaJaxError(
            f"{directory} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are still to be written: "
            "make room, or choose another data directory"
        )
