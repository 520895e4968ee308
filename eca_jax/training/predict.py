"""What a trained model says of image files: a stream, in batches, on all devices of this process."""

import collections
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from flax import nnx

from eca_jax.compiler_options import compiler_options
from eca_jax.data.config import DataConfig
from eca_jax.data.image_files import read_image_file
from eca_jax.errors import EcaJaxError
from eca_jax.memory import SMALLER, Fitting, expect_room, host_room, names_lack_of_memory
from eca_jax.models.base import Backbone
from eca_jax.runs.state import split
from eca_jax.sharding import batch_sharding, make_mesh, replicated
from eca_jax.tasks.base import Batch, Example, Task

IMAGES = 64
"""A device's share of a batch, where nothing says it."""


def _refuse(error: EcaJaxError) -> None:
    raise error


def predict_files(
    files: Sequence[str],
    *,
    model: Backbone,
    task: Task,
    batch_size: int | None = None,
    unreadable: Callable[[EcaJaxError], object] = _refuse,
) -> Iterator[tuple[str, Any]]:
    """(file, prediction) in the order of the files; a prediction is a row of what the task's `predict` returns, NumPy.

    Files are read and decoded in threads, at most a batch ahead of the devices. A batch is split over this process's
    devices; the last one is filled up with zeros.

    Args:
      files: of images, as `eca_jax.data.folders.find_images` gives them.
      model: in evaluation mode.
      task: says how an image becomes a prediction.
      batch_size: images at once on all devices together, rounded up to a multiple of those; None is 64 for each.
      unreadable: is told of each file that cannot be read as an image, which has no prediction; by default it ends all.

    Raises:
      EcaJaxError: there is not enough memory; or what `unreadable` raises, which names the file.
    """
    if not files:
        return
    devices = jax.local_devices()
    images = min(batch_size or IMAGES * len(devices), len(files))
    devices = devices[:images]
    images = -(-images // len(devices)) * len(devices)
    size = task.preprocess.image_size
    what = f"a prediction on {'an image' if images == 1 else f'{images} images'} of {size} x {size} pixels"
    remedies = [*(["a smaller --batch-size"] if images > 1 else []), SMALLER]
    expect_room(f"loading {what}", 3 * size**2 * images, host_room(), remedies, at_least=True)
    with names_lack_of_memory(what, remedies, devices):
        compute = _computation(model, task, devices, images, functools.partial(Fitting, what=what, remedies=remedies))
        examples = _readable(files, task, images, unreadable)
        in_flight = collections.deque()
        while batch := list(itertools.islice(examples, images)):
            for part, rows in [(batch, images)] if _alike(batch) else [([one], 1) for one in batch]:
                in_flight.append(([file for file, _ in part], compute([example for _, example in part], rows)))
                if len(in_flight) > 1:  # the devices have work, while the host looks at what they have done
                    yield from _predictions(*in_flight.popleft())
        while in_flight:
            yield from _predictions(*in_flight.popleft())


def _computation(
    model: Backbone, task: Task, devices: Sequence[Any], images: int, fitting: Callable[[jax.stages.Wrapped], Fitting]
) -> Callable[[Sequence[Example], int], Any]:
    """A function of examples of equal shapes, and of how many rows their batch has -> the task's predictions, (rows).

    A batch of `images` rows is split over the devices; one of another number is computed on each of them.
    """
    mesh = make_mesh(devices)
    graphdef, *state = split(model)
    state = jax.device_put(state, replicated(mesh))

    def predict(state: Any, batch: Batch) -> Any:
        return task.predict(nnx.merge(graphdef, *state), batch)

    program = fitting(jax.jit(predict, compiler_options=compiler_options(devices[0].platform)))

    def compute(examples: Sequence[Example], rows: int) -> Any:
        padding = [jax.tree.map(np.zeros_like, examples[0])] * (rows - len(examples))
        place = batch_sharding(mesh, images) if rows == images else replicated(mesh)
        return program(state, jax.device_put(task.collate([*examples, *padding]), place))

    return compute


def _readable(
    files: Sequence[str], task: Task, ahead: int, unreadable: Callable[[EcaJaxError], object]
) -> Iterator[tuple[str, Example]]:
    """(file, example) of those that can be read, in their order; as many as `ahead` are decoded before they are due."""
    threads = min(DataConfig.num_threads, len(files))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads))
    found = grain.MapDataset.range(len(files)).map(lambda i: (files[i], _decoded(files[i], task)))
    for file, example in found.to_iter_dataset(options):
        if isinstance(example, EcaJaxError):
            unreadable(example)
        else:
            yield file, example


def _decoded(file: str, task: Task) -> Example | EcaJaxError:
    """What the task makes of a file, or what is wrong with it."""
    try:
        return read_image_file(file, task.predict_example)
    except EcaJaxError as error:
        return error


def _alike(examples: Sequence[tuple[str, Example]]) -> bool:
    """Whether all have the same shapes."""
    return len({tuple(np.shape(leaf) for leaf in jax.tree.leaves(example)) for _, example in examples}) == 1


def _predictions(files: Sequence[str], output: Any) -> Iterator[tuple[str, Any]]:
    """The rows of the files, without those that fill up the batch."""
    output = jax.device_get(output)
    for row, file in enumerate(files):
        yield file, jax.tree.map(lambda leaf, row=row: leaf[row], output)
