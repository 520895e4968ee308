"""What happens to files on disks and networks, and what reading such a file may do."""

import contextlib
import pathlib
import resource
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from eca_jax.convert.files import read_weights
from eca_jax.convert.pretrained import identify
from eca_jax.convert.state_dict import NATIVE, from_state_dict, to_state_dict
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Backbone

KINDS = ("truncate", "flip bits", "set bytes", "insert", "delete", "duplicate", "zero")


def damaged(data: bytes, rng: np.random.Generator, ranges: Sequence[tuple[int, int]]) -> bytes:
    """`data` damaged somewhere in one of the ranges."""
    result = bytearray(data)
    start, stop = ranges[rng.integers(len(ranges))]
    at = int(rng.integers(start, stop))
    end = at + int(2 ** rng.uniform(0, 12))
    match KINDS[rng.integers(len(KINDS))]:
        case "truncate":
            del result[at:]
        case "flip bits":
            for i in rng.integers(start, stop, rng.integers(1, 9)):
                result[i] ^= 1 << int(rng.integers(8))
        case "set bytes":
            for i in rng.integers(start, stop, rng.integers(1, 9)):
                result[i] = int(rng.integers(256))
        case "insert":
            result[at:at] = rng.bytes(end - at)
        case "delete":
            del result[at:end]
        case "duplicate":
            result[at:at] = result[at:end]
        case "zero":
            result[at:end] = bytes(len(result[at:end]))
    return bytes(result)


def read_damaged(path: pathlib.Path, model: Backbone, ranges: Sequence[tuple[int, int]], n: int) -> list[bool | None]:
    """Damages the file of `model` in n ways and reads each.

    What loads is finite and has the shapes of the model. Any other error than the package's own is raised.

    Returns: for each, whether its arrays are those of the model; None where it was refused.
    """
    data = path.read_bytes()
    wanted = to_state_dict(model, NATIVE)
    target = path.with_name(f"damaged{path.suffix}")
    outcomes = []
    for seed in range(n):
        target.write_bytes(damaged(data, np.random.default_rng(seed), ranges))
        try:
            file = read_weights(target)
            source, architecture = identify(file)
            loaded = from_state_dict(file.tensors, source=source, architecture=architecture)
        except EcaJaxError:
            outcomes.append(None)
            continue
        arrays = to_state_dict(loaded, NATIVE)
        assert {key: value.shape for key, value in arrays.items()} == {k: v.shape for k, v in wanted.items()}, seed
        assert all(np.isfinite(value).all() for value in arrays.values()), seed
        outcomes.append(all(np.array_equal(arrays[key], wanted[key]) for key in wanted))
    return outcomes


def refusal(function: Callable, *args, **kwargs) -> str:
    """The one line with which it is refused."""
    with pytest.raises(EcaJaxError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextlib.contextmanager
def disk_with(free: int) -> Iterator[None]:
    """Files cannot become longer than this many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
