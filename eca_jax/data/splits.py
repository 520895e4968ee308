"""TFDS's notation for splits ('train', 'train[:90%]', 'train+test'), for all data sets."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import tensorflow_datasets as tfds

from eca_jax.data.records import Part
from eca_jax.errors import EcaJaxError, nearest

T = TypeVar("T")

HELD_OUT = ("validation", "test", "val")
"""Names of the split to evaluate on; the first of them that a data set has is used."""


def split_names(split: str) -> set[str]:
    """'train[:90%]+test' -> {'train', 'test'}."""
    return set(re.findall(r"(?:^|\+)\s*([^\[+\s]+)", split))


def held_out(name: str, known: list[str]) -> str:
    """The split of a data set to evaluate on, out of those that it has."""
    found = next((split for split in HELD_OUT if split in known), None)
    if found is None:
        raise EcaJaxError(
            f"data set {name!r} has no split {' or '.join(HELD_OUT)}; say which: {', '.join(sorted(known))}"
        )
    return found


def check_split(name: str, split: str, known: list[str]) -> None:
    """Refuses a split that the data set does not have."""
    for s in split_names(split) - set(known):
        raise EcaJaxError(f"data set {name!r}: unknown split {s!r} in {split!r}.{nearest(s, known)}")


def absolute(name: str, split: str, sizes: Mapping[str, int]) -> tuple[Part, ...]:
    """The parts of the named splits that 'train[:90%]+test' means; `sizes` has the number of records in each split."""
    try:
        known = {s: tfds.core.SplitInfo(name=s, shard_lengths=[size], num_bytes=0) for s, size in sizes.items()}
        instructions = tfds.core.ReadInstruction.from_spec(split).to_absolute(known)
    except (ValueError, AssertionError) as error:
        raise cannot_read_split(name, split, error) from error
    return tuple(Part(i.splitname, i.from_ or 0, sizes[i.splitname] if i.to is None else i.to) for i in instructions)


def select(name: str, split: str, examples: Mapping[str, Sequence[T]]) -> tuple[list[T], tuple[Part, ...]]:
    """Selects a split such as 'train[:90%]' from the examples of each named split; (examples, their places)."""
    parts = absolute(name, split, {s: len(e) for s, e in examples.items()})
    chosen = [e for part in parts for e in examples[part.split][part.start : part.stop]]
    if not chosen:
        raise EcaJaxError(f"data set {name!r}: split {split!r} has no images")
    return chosen, parts


def cannot_read_split(name: str, split: str, error: Exception) -> EcaJaxError:
    """The error for a split whose notation is wrong, in TFDS's words."""
    return EcaJaxError(f"data set {name!r}: cannot read split {split!r}: {' '.join(str(error).split())}")
