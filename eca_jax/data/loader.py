"""Batches as global sharded arrays, each a pure function of (seed, step).

The training examples form one endless stream: epoch after epoch, each a shuffle of its own. Step k takes the examples
k * B to (k + 1) * B of it, whatever the number of processes and devices; every process decodes only the rows that its
devices hold. So resuming at step k costs nothing and replays nothing. The augmentation of an example is drawn from
(seed, epoch, example): neither the batch size nor whoever decodes it changes its pixels.

Repeated augmentation (Berman et al. 2019, arXiv:1902.05509, section 3.2; timm's RepeatAugSampler) with r repeats: step
k takes the next S = ceil(B / r) examples of the stream, and its rows are r times those S, each copy augmented with a
generator of its own; where r does not divide B, the last copy lacks the last examples. Copies are S rows apart: never
neighbours, and in different statistics groups as long as a group is not larger than S. timm begins every epoch with a
new shuffle, of which it takes the first r-th; here the stream goes on, so that every example is seen in r epochs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from eca_jax.data.bad_records import BadRecords, NotTheRecord
from eca_jax.data.records import Source
from eca_jax.errors import EcaJaxError

Example = Any
"""A tree of NumPy arrays."""
Batch = Any
"""A tree of global arrays (b, ...)."""
Finish = Callable[[], Example]
"""The work on an example that remains after its record has been read; returns the example."""
Job = tuple[int, Callable[[Any], Finish]]
"""The number of a record, and the function that makes an example from the record."""


class Examples(Protocol):
    """The part of a task that the loader uses; `eca_jax.tasks.base.Task` describes it."""

    def batch_shape(self, seed: int, step: int) -> Any: ...
    def train_example(self, record: Any, source: Source, rng: np.random.Generator, batch_shape: Any) -> Finish: ...
    def eval_example(self, record: Any, source: Source) -> Finish: ...
    def padding(self, source: Source) -> Example: ...
    def collate(self, examples: Sequence[Example]) -> Example: ...


def train_batches(
    source: Source,
    task: Examples,
    *,
    seed: int,
    batch_size: int,
    steps: range,
    sharding: NamedSharding,
    num_threads: int,
    repeats: int = 1,
    bad_records: BadRecords | None = None,
) -> Iterator[Batch]:
    """The batches of the given steps, in their order. The next readable example takes the place of a bad record.

    Raises:
      EcaJaxError: more records are bad than `bad_records` tolerates (None: none), or all are.
    """
    bad_records = BadRecords() if bad_records is None else bad_records
    stream = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    rows = local_rows(sharding, batch_size)

    def job(step: int, position: int, copy: int, offset: int = 0) -> Job:
        index, epoch = cast(int, stream[position]), position // len(source)

        def begin(record: Any) -> Finish:
            # The generator is made anew for a substitute, so that it does not matter how far the bad record came.
            rng = np.random.default_rng((seed, epoch, index, copy))
            return task.train_example(record, source, rng, task.batch_shape(seed, step))

        return (index + offset) % len(source), begin

    def substitute(step: int, place: tuple[int, int]) -> Example:
        for offset in range(1, len(source)):
            (example,) = _examples(source, [job(step, *place, offset)], bad_records)
            if example is not None:
                return example
        raise EcaJaxError(f"none of the {len(source)} records of {source.name!r}, split {source.split!r}, can be read")

    def load(step: int) -> Example:
        places = [stream_position(step, int(row), batch_size, repeats) for row in rows]
        examples = _examples(source, [job(step, *place) for place in places], bad_records)
        return task.collate(
            [substitute(step, p) if example is None else example for example, p in zip(examples, places, strict=True)]
        )

    return _batches(load, steps, rows, batch_size, sharding, num_threads)


def stream_position(step: int, row: int, batch_size: int, repeats: int) -> tuple[int, int]:
    """(position in the stream of examples, number of the copy) for one row of the global batch of a step."""
    distinct = -(-batch_size // repeats)
    return step * distinct + row % distinct, row // distinct


def eval_batches(
    source: Source,
    task: Examples,
    *,
    batch_size: int,
    sharding: NamedSharding,
    num_threads: int,
    bad_records: BadRecords | None = None,
) -> Iterator[Batch]:
    """Every example exactly once, in order. Padding of the last batch and bad records are zeros with the mask 0.

    Raises:
      EcaJaxError: more records are bad than `bad_records` tolerates (None: none).
    """
    bad_records = BadRecords() if bad_records is None else bad_records
    rows = local_rows(sharding, batch_size)
    padding = task.padding(source)

    def begin(record: Any) -> Finish:
        return task.eval_example(record, source)

    def load(step: int) -> Example:
        jobs = [(i, begin) for row in rows if (i := step * batch_size + int(row)) < len(source)]
        examples = [*_examples(source, jobs, bad_records), *[None] * (len(rows) - len(jobs))]
        return task.collate([padding if example is None else example for example in examples])

    return _batches(load, range(-(-len(source) // batch_size)), rows, batch_size, sharding, num_threads)


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, in ascending order."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices if index is not None]))


def _examples(source: Source, jobs: Sequence[Job], bad_records: BadRecords) -> list[Example | None]:
    """The example of each job; None if it cannot be read.

    First what needs no pixels is done for all of them: between two images, when the caches are full of the last, Python
    takes three times as long for it.
    """

    def tried(index: int, function: Callable):
        try:
            return function()
        except NotTheRecord as error:
            error.cause.add_note(f"at {source.describe(index)}")
            raise
        except Exception as error:  # whatever a decoder says of damaged bytes, the user has to know which record it was
            bad_records.add(source, index, error)

    begun = [(index, tried(index, lambda i=index, begin=begin: begin(source[i]))) for index, begin in jobs]
    return [None if finish is None else tried(i, finish) for i, finish in begun]


def _batches(
    load: Callable[[int], Example],
    steps: range,
    rows: np.ndarray,
    batch_size: int,
    sharding: NamedSharding,
    num_threads: int,
) -> Iterator[Batch]:
    """Loads several steps at once, and puts the rows onto their devices, in uint8, when they are asked for.

    In threads: decoding and resizing hold no GIL, and the rest is a sixth of the time. Grain's processes took 13% more
    of it, started ten seconds later, and would each count bad records by themselves. The training loop asks for a batch
    while the last step runs, so that it crosses over in the meantime.
    """
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    try:
        for local in grain.MapDataset.range(steps.start, steps.stop).map(load).to_iter_dataset(options):
            yield jax.tree.map(lambda leaf: _global_array(leaf, rows, batch_size, sharding), local)
    except NotTheRecord as error:
        failure = error.cause
    else:
        return
    raise failure  # here, where it does not become part of its own history


def _global_array(local: np.ndarray, rows: np.ndarray, batch_size: int, sharding: NamedSharding) -> jax.Array:
    def shard(index) -> np.ndarray:
        start, stop, _ = index[0].indices(batch_size)
        first = np.searchsorted(rows, start)
        return local[first : first + stop - start]

    return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, shard)
