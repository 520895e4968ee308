"""How much memory a program needs, how much there is, and a one-line error if that is not enough.

An accelerator has a fixed amount of memory, and its runtime says how much of it a process may use. There, a program
needs memory for its arguments too. On the CPU, all programs share the machine's memory. There, what is free now counts
as available, and a program needs only memory besides its arguments, which are in memory already.

Nothing that could work is refused. The need is a lower bound or the compiler's plan, and the free memory includes
everything that the system gives back on demand (the page cache, swap).
"""

import contextlib
import dataclasses
import os
import pathlib
import resource
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from eca_jax.errors import EcaJaxError

MIB, GIB = 1024**2, 1024**3
RECLAIMED = ("active_file", "inactive_file", "slab_reclaimable")
"""Names in memory.stat: memory that a control group counts as used but gives back on demand."""

SMALLER = "a smaller --preprocess.image-size"
"""The remedy that always helps."""


@dataclasses.dataclass(frozen=True)
class Room:
    """How much memory there is, and on which device."""

    bytes: int
    where: str
    """'this machine', 'NVIDIA H100 80GB HBM3'."""
    free: bool = False
    """True: `bytes` is what is free now of the machine's memory, which all CPU devices share; the arguments of a
    program that is about to run are already in it. False: `bytes` is all the memory of one device."""

    def __str__(self) -> str:
        return f"{self.where} has {_size(self.bytes)}{' free' if self.free else ''}"


def host_room(root: pathlib.Path = pathlib.Path("/")) -> Room:
    """The memory that this process can still get: what the machine has free, or less if a limit is set.

    Args:
      root: the directory that contains /proc and /sys.
    """
    free = [_available(root), *_control_group_rooms(root)]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)  # ulimit -v
    if limit != resource.RLIM_INFINITY and (root / "proc/self/statm").is_file():
        pages = int((root / "proc/self/statm").read_text().split()[0])
        free.append(limit - pages * os.sysconf("SC_PAGE_SIZE"))
    return Room(max(min(free), 0), "this machine", free=True)


def _available(root: pathlib.Path) -> int:
    """Bytes that the kernel would give to new programs; on systems without /proc (macOS), all the memory there is."""
    if not (root / "proc/meminfo").is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kib = _numbers(root / "proc/meminfo")
    return 1024 * (kib["MemAvailable:"] + kib.get("SwapFree:", 0))


def _control_group_rooms(root: pathlib.Path) -> Iterator[int]:
    """Bytes left below the limit of each control group of this process, for version 2 and version 1.

    In a container, the path of the group may be a path of the host, and the group itself is at the mount point.
    """
    table = root / "proc/self/cgroup"
    for line in table.read_text().splitlines() if table.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit, used, prefix = "", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            mount, limit, used, prefix = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        top = root / "sys/fs/cgroup" / mount
        group = pathlib.PurePath(path.lstrip("/"))
        for directory in (top / part for part in (group, *group.parents)):
            if not (directory / limit).is_file() or (most := (directory / limit).read_text().strip()) == "max":
                continue
            stat = _numbers(directory / "memory.stat")
            given_back = sum(stat.get(prefix + name, 0) for name in RECLAIMED)
            yield int(most) - int((directory / used).read_text()) + given_back


def _numbers(file: pathlib.Path) -> dict[str, int]:
    """The lines 'name number ...' of a file of the kernel, as a dict."""
    words = (line.split() for line in file.read_text().splitlines())
    return {word[0]: int(word[1]) for word in words if len(word) > 1}


def device_room(devices: Sequence[Any]) -> Room | None:
    """The memory of the first of these devices that belongs to this process; None if its runtime does not say."""
    local = [device for device in devices if device.process_index == jax.process_index()]
    if local[0].platform == "cpu":
        return host_room()
    limit = (local[0].memory_stats() or {}).get("bytes_limit")
    return None if limit is None else Room(limit, local[0].device_kind)


def needed_by(compiled: jax.stages.Compiled, room: Room) -> int:
    """Bytes of this memory that a compiled program takes when it runs, according to the compiler's plan.

    A donated argument and the result in its place count once. The plan is for one device; if the devices of this
    process share the memory, each of them needs as much.
    """
    plan = compiled.memory_analysis()
    if plan is None:  # the runtime has none
        return 0
    bytes_ = plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
    bytes_ += plan.generated_code_size_in_bytes
    if not room.free:
        return bytes_ + plan.argument_size_in_bytes
    places = jax.tree.leaves(compiled.output_shardings)
    return bytes_ * max((len(place.addressable_devices) for place in places), default=1)


def expect_room(what: str, needed: int, room: Room | None, remedies: Sequence[str], at_least: bool = False) -> None:
    """Refuses what cannot fit.

    Args:
      what: what needs the memory: 'a training step on 256 images of 224 x 224'.
      needed: bytes.
      room: the memory; None means that it is unknown, and nothing is refused.
      remedies: what the user can do, the best first.
      at_least: whether `needed` is a lower bound.

    Raises:
      EcaJaxError: it does not fit; the message contains all of these.
    """
    if room is not None and needed > room.bytes:
        bound = "at least " if at_least else ""
        raise EcaJaxError(_line(f"{what} needs {bound}{_size(needed)}, and {room}", remedies))


class Fitting:
    """A jitted function; its first call with arguments of new shapes compiles it and checks that it fits into memory.

    Raises:
      EcaJaxError: in that call, if the compiled program needs more memory than there is.
    """

    def __init__(self, function: jax.stages.Wrapped, what: str, remedies: Sequence[str]):
        self._function, self._what, self._remedies = function, what, remedies
        self.programs: dict[Any, jax.stages.Compiled] = {}

    def __call__(self, *args: Any) -> Any:
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(args))
        if shapes not in self.programs:
            program, room = self._function.lower(*args).compile(), device_room(jax.local_devices())
            if room is not None:
                expect_room(self._what, needed_by(program, room), room, self._remedies)
            self.programs[shapes] = program
        return self.programs[shapes](*args)


@contextlib.contextmanager
def names_lack_of_memory(what: str, remedies: Sequence[str], devices: Sequence[Any]) -> Iterator[None]:
    """Turns errors about a lack of memory, of the host or of a device, into one `EcaJaxError`."""
    try:
        yield
    except MemoryError as error:
        raise EcaJaxError(_line(_there_is(what, str(error), host_room()), remedies)) from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error).partition("\n")[0].partition("RESOURCE_EXHAUSTED")[2].strip(": ")
        raise EcaJaxError(_line(_there_is(what, said, device_room(devices)), remedies)) from error


def _there_is(what: str, said: str, room: Room | None) -> str:
    has = "" if room is None else f"; {room}"
    return f"none is left for {what}{f' ({said})' if said else ''}{has}"


def _line(problem: str, remedies: Sequence[str]) -> str:
    numbered = ", ".join(f"({number}) {remedy}" for number, remedy in enumerate(remedies, 1))
    return f"out of memory: {problem}. What helps, in this order: {numbered}"


def _size(n: float) -> str:
    return f"{n / GIB:,.2f} GiB" if n >= GIB else f"{n / MIB:,.1f} MiB"
