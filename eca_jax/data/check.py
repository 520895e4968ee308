"""Reads every image of a data set and reports what is in it: `eca-jax check`."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import grain
import tqdm
from PIL import Image

from eca_jax.data.folders import NO_FILE
from eca_jax.data.preprocess import decode, open_image
from eca_jax.data.records import Source, class_difference
from eca_jax.errors import printable

FORMATS = {"MPO": "JPEG"}
"""Pillow's name for a JPEG file that contains a second picture, as some cameras write it -> its format."""


@dataclasses.dataclass(frozen=True)
class Checked:
    """The result for one record."""

    labels: tuple[int, ...] = ()
    size: tuple[int, int] = (0, 0)
    """Width and height in pixels."""
    error: str | None = None
    """Why it cannot be read."""
    odd: str | None = None
    """What is unusual about it, although it can be read."""


@dataclasses.dataclass
class Report:
    """The result for a split."""

    source: Source
    images: int = 0
    """The number of images that can be read."""
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    """The number of readable images by label."""
    smallest: tuple[int, tuple[int, int]] | None = None
    """(index, size) of the image with the fewest pixels."""
    largest: tuple[int, tuple[int, int]] | None = None
    unreadable: list[str] = dataclasses.field(default_factory=list)
    """'record 3 of ...: why'."""
    odd: list[str] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        for path, why in getattr(self.source.records, "left_out", ()):
            (self.unreadable if why == NO_FILE else self.left_out).append(f"{printable(str(path))}: {why}")

    def add(self, index: int, found: Checked) -> None:
        """Counts one record."""
        where = self.source.describe(index)
        if found.error is not None:
            self.unreadable.append(f"{where}: {found.error}")
            return
        if found.odd is not None:
            self.odd.append(f"{where}: {found.odd}")
        self.images += 1
        self.counts.update(found.labels)
        this = index, found.size
        self.smallest = min(self.smallest or this, this, key=_pixels)
        self.largest = max(self.largest or this, this, key=_pixels)

    def lines(self) -> Iterator[str]:
        """The report as text; lines about what cannot be read begin with 'unreadable: ', for grep."""
        source = self.source
        yield (
            f"{printable(source.name)}, split {source.split!r}: {self.images} of {len(source)} images can be read, "
            f"{len(source.class_names)} classes"
        )
        for label, name in enumerate(source.class_names):
            yield f"{self.counts[label]:9}  {printable(name)}"
        for which, found in (("smallest", self.smallest), ("largest", self.largest)):
            if found is not None:
                index, (width, height) = found
                yield f"{which}: {width} x {height}, {source.describe(index)}"
        yield from (f"left out: {what}" for what in self.left_out)
        yield from (f"odd: {what}" for what in self.odd)
        yield from (f"unreadable: {what}" for what in self.unreadable)


def class_differences(sources: Sequence[Source]) -> list[str]:
    """A line for each split whose classes differ from those of the first; no run can be trained on such splits."""
    first, *others = sources
    return [
        f"classes differ: split {first.split!r} (the first) and {other.split!r} (the second): "
        f"{class_difference(first.class_names, other.class_names)}"
        for other in others
        if other.class_names != first.class_names
    ]


def check(source: Source, num_threads: int) -> Report:
    """Reads and decodes every record, several at a time, under a progress bar."""
    report = Report(source)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=4 * num_threads)
    found = grain.MapDataset.range(len(source)).map(lambda index: _check_record(source, index))
    bar = tqdm.tqdm(found.to_iter_dataset(options), total=len(source), desc=source.split, unit="image", disable=None)
    for index, checked in enumerate(bar):
        report.add(index, checked)
    return report


def _check_record(source: Source, index: int) -> Checked:
    try:
        data, label = source[index]
        with open_image(data) as image:
            found_format, frames = str(image.format), getattr(image, "n_frames", 1)
        size = decode(data).size
    except Exception as error:  # whatever a decoder says of damaged bytes
        return Checked(error=" ".join(str(error).split()) or type(error).__name__)
    labels = label if isinstance(label, tuple) else (label,)
    return Checked(labels, size, odd=_oddity(source, index, labels, FORMATS.get(found_format, found_format), frames))


def _oddity(source: Source, index: int, labels: tuple[int, ...], found_format: str, frames: int) -> str | None:
    files = getattr(source.records, "files", None)
    ending = files[index].suffix.lower() if files is not None else ""
    expected = Image.registered_extensions().get(ending, found_format)
    found = []
    if found_format != expected:
        found.append(f"it is {found_format}, whatever its ending says")
    if frames > 1 and found_format != "JPEG":
        found.append(f"it has {frames} pictures, of which the first counts")
    if not all(0 <= label < len(source.class_names) for label in labels):
        found.append(f"its label {', '.join(map(str, labels))} is no class")
    return "; ".join(found) or None


def _pixels(found: tuple[int, tuple[int, int]]) -> int:
    return found[1][0] * found[1][1]
