"""Gates of trained networks on the images of a data set."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from eca_jax.analysis.classes import class_means
from eca_jax.analysis.gates import gate_function
from eca_jax.convert.pretrained import Loaded, load
from eca_jax.data.imagenet import readable
from eca_jax.data.preprocess import normalise
from eca_jax.data.records import Source
from eca_jax.data.sources import open_source
from eca_jax.errors import EcaJaxError, nearest
from eca_jax.runs.directory import open_run
from eca_jax.tasks.base import Task

BATCH = 64
"""Images at once."""


def load_network(source: str, *, is_run: bool, name: str | None = None, checkpoint: str | None = None) -> Loaded:
    """A network with its weights in evaluation mode: of a run, at a checkpoint of it, or of a weight file.

    Raises:
      EcaJaxError: there is no such run or weights, or these are not of the model called `name`.
    """
    if not is_run:
        return load(source, name=name)
    with open_run(source):  # a run that is not there is no name on the hub
        return load(source, name=name, checkpoint=checkpoint)


def open_images(
    loaded: Loaded, weights: str, data: str | None, split: str | None, data_dir: str | None = None
) -> Source:
    """The data set that is asked for, or the held-out split that the run of these weights evaluates on.

    Raises:
      EcaJaxError: weights without a run say no data set; or it has other classes than the weights.
    """
    if data is not None:
        source = open_source(data, split, data_dir)
    elif loaded.run is not None:
        own = loaded.run.config.data
        source = open_source(own.name, split or own.eval_split, data_dir or own.data_dir, own.keys)
    else:
        raise EcaJaxError(f"{weights} is no run, which would have a data set: say which, such as --data imagenet2012")
    loaded.check_data(source, weights)
    return source


@dataclasses.dataclass(frozen=True)
class ClassWeights:
    """Mean channel weights of several networks, by class."""

    means: Mapping[str, Mapping[str, np.ndarray]]
    """The name of each network -> block -> (classes, channels), float64."""
    blocks: tuple[str, ...]
    class_names: tuple[str, ...]
    """For people."""
    images: tuple[int, ...]
    """Of each class."""
    source: Source

    def describe(self) -> str:
        """The images in words."""
        counts = ", ".join(f"{n} of {name}" for name, n in zip(self.class_names, self.images, strict=True))
        return f"means over images of {self.source.name!r}, split {self.source.split!r}: {counts}"


DEFAULT_CLASSES, DEFAULT_BLOCKS = 4, 4
"""How many where nothing says which."""


def class_weights(
    networks: Mapping[str, Loaded],
    *,
    classes: Sequence[str] | None,
    blocks: Sequence[str] | None,
    images: int,
    where: tuple[str | None, str | None, str | None] = (None, None, None),
    preprocess: Mapping[str, Any] | None = None,
) -> ClassWeights:
    """Mean channel weights of classes, of each network on the same images, made as that network's are.

    Args:
      networks: by what the user calls them.
      classes: names or numbers; None is the first four.
      blocks: names; None is four that all networks have.
      images: of each class, at most.
      where: the data set, its split and directory; None is what the first network's run says.
      preprocess: fields that are not to be the networks' own.

    Raises:
      EcaJaxError: there is no such class or block, no image of a class, or a network has no channel gates.
    """
    first = next(iter(networks))
    source = open_images(networks[first], first, *where)
    for name, loaded in networks.items():
        loaded.check_data(source, name)
    asked = classes or [str(c) for c in range(min(DEFAULT_CLASSES, len(source.class_names)))]
    numbers = numbers_of_classes(asked, source.class_names)
    records, labels = records_of_classes(source, numbers, images)
    gates = {
        name: gates_of_records(loaded, loaded.task.with_preprocess(preprocess or {}), source, records)
        for name, loaded in networks.items()
    }
    shown = common_blocks([list(of) for of in gates.values()], blocks, DEFAULT_BLOCKS)
    means = {
        name: {block: class_means(of[block], labels, np.array(numbers)) for block in shown}
        for name, of in gates.items()
    }
    counts = tuple(int(np.sum(labels == number)) for number in numbers)
    names = tuple(readable(source.class_names[number]) for number in numbers)
    return ClassWeights(means, tuple(shown), names, counts, source)


def to_rows(weights: ClassWeights) -> list[dict[str, object]]:
    """A row of a table for each network, block, class and channel."""
    return [
        {"network": network, "block": block, "class": name, "channel": channel, "mean_weight": float(value)}
        for network, of in weights.means.items()
        for block in weights.blocks
        for name, line in zip(weights.class_names, of[block], strict=True)
        for channel, value in enumerate(line)
    ]


def evenly_spaced(images: int, of: int) -> list[int]:
    """The numbers of so many records, evenly spaced from the first; all where there are not more."""
    return [i * of // images for i in range(images)] if images < of else list(range(of))


def numbers_of_classes(names: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """The numbers of classes, each given by its name ('n01440764', 'tench') or its number.

    Raises:
      EcaJaxError: there is no such class; the most similar are named.
    """
    known = {readable(name): i for i, name in reversed([*enumerate(class_names)])}
    known |= {name: i for i, name in enumerate(class_names)}
    numbers = {str(i): i for i in range(len(class_names))}
    found = [known.get(name, numbers.get(name)) for name in names]
    for name, number in zip(names, found, strict=True):
        if number is None:
            raise EcaJaxError(f"--classes: there is no class {name!r}.{nearest(name, known)}")
    return [number for number in found if number is not None]


def records_of_classes(source: Source, classes: Sequence[int], images: int) -> tuple[list[int], np.ndarray]:
    """The first `images` records of each class, as far as there are so many: (their numbers, the class of each).

    An image with several labels counts for the first of the `classes` that still needs one.

    Raises:
      EcaJaxError: a class has no image.
    """
    labels = getattr(source.records, "labels", None)  # where they are known, no image is read for its label
    found: dict[int, list[int]] = {c: [] for c in classes}
    for i in range(len(source)):
        label = source[i][1] if labels is None else labels[i]
        of = (label,) if isinstance(label, int | np.integer) else label
        wanted = next((c for c in classes if c in of and len(found[c]) < images), None)
        if wanted is not None:
            found[wanted].append(i)
            if all(len(records) == images for records in found.values()):
                break
    for c, records in found.items():
        if not records:
            name = readable(source.class_names[c])
            raise EcaJaxError(f"data set {source.name!r}, split {source.split!r}, has no image of the class {name!r}")
    return [i for c in classes for i in found[c]], np.repeat(classes, [len(found[c]) for c in classes])


def gates_of_records(loaded: Loaded, task: Task, source: Source, records: Sequence[int]) -> dict[str, np.ndarray]:
    """The gates of every block on records of a data set: the block's name -> (records, channels), float32.

    Args:
      loaded: the network.
      task: says how a record becomes an image.

    Raises:
      EcaJaxError: as `channel_gates`; or an image cannot be read, which is named.
    """
    run, parts = gate_function(loaded.model), []
    size = min(BATCH, len(records))
    for start in range(0, len(records), size):
        images = np.stack([_image(task, source, i) for i in records[start : start + size]])
        padding = [(0, size - len(images))] + [(0, 0)] * (images.ndim - 1)
        gates = jax.device_get(run(normalise(jax.numpy.asarray(np.pad(images, padding)), task.preprocess)))
        parts.append({name: gate[: len(images)] for name, gate in gates.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _image(task: Task, source: Source, record: int) -> Any:
    """uint8 (h, w, 3)."""
    try:
        return task.eval_example(source[record], source)()["image"]
    except Exception as error:  # whatever a decoder says of damaged bytes, the user has to know which record it was
        raise EcaJaxError(f"cannot read {source.describe(record)}: {error}") from error


def common_blocks(networks: Sequence[Sequence[str]], names: Sequence[str] | None, most: int) -> list[str]:
    """The blocks that are asked for, of networks with these blocks.

    Without `names` they are up to `most` of those that all networks have, evenly spaced from the first to the last.

    Raises:
      EcaJaxError: a network has no such block, or they have none in common.
    """
    shared = [name for name in networks[0] if all(name in other for other in networks)]
    if names is None:
        if not shared:
            raise EcaJaxError("the networks have no block of the same name; expected networks of one family")
        places = np.linspace(0, len(shared) - 1, min(most, len(shared))).round().astype(int)
        return [shared[i] for i in places]
    for name in names:
        if name not in shared:
            raise EcaJaxError(f"--blocks: not every network has a block {name!r}.{nearest(name, shared)}")
    return list(names)
