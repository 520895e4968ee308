"""Processes, devices, and how arrays are split over them; the only file that uses PartitionSpec."""

import contextlib
import dataclasses
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from eca_jax.errors import EcaJaxError
from eca_jax.plain import TypedFields

Rules = tuple[tuple[str, tuple[str | None, ...]], ...]


HEARTBEAT_SECONDS = 30
"""If a process gives no sign of life for so long, JAX takes it for dead and ends the others."""
SECONDS_TO_SPEAK = 3
SECONDS_TO_GATHER = 5


@dataclasses.dataclass(frozen=True)
class ClusterConfig(TypedFields, at="cluster"):
    """Several processes. Leave this out if JAX detects the cluster by itself (TPU pods, Slurm, Open MPI)."""

    coordinator: str | None = None
    """host:port of process 0."""
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self):
        given = [value is not None for value in (self.coordinator, self.num_processes, self.process_id)]
        if any(given) and not all(given):
            raise EcaJaxError("cluster: coordinator, num_processes and process_id go together; leave out all or none")
        if self.num_processes is not None and not 0 <= (self.process_id or 0) < self.num_processes:
            raise EcaJaxError(f"cluster.process_id: expected 0 to {self.num_processes - 1}, got {self.process_id}")
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not (host and port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
                raise EcaJaxError(
                    f"cluster.coordinator: expected HOST:PORT, a port from 1 to {2**16 - 1}, got {self.coordinator!r}"
                )


def initialize_cluster(config: ClusterConfig) -> None:
    """Joins the other processes, if a cluster is configured or detected. Call it before JAX uses a device.

    If JAX has used a device already (a notebook that trains twice) and no cluster is configured, nothing is done: in a
    cluster that JAX detects, the first call has joined.

    Raises:
      EcaJaxError: the other processes did not come within JAX's limit (5 minutes), or JAX has used a device already.
    """
    if jax.distributed.is_initialized():
        return
    asked = dataclasses.astuple(config) if config.coordinator is not None else ()
    where = f"{config.num_processes} processes at {config.coordinator}" if asked else "the processes JAX has detected"
    try:
        with _says_that_it_waits(where):
            jax.distributed.initialize(*asked, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except ValueError as error:  # "coordinator_address should be defined": no cluster was detected
        if asked or "coordinator_address" not in str(error):
            raise
    except RuntimeError as error:
        if not asked and "must be called before" in str(error):
            return
        raise EcaJaxError(f"cluster: cannot join {where}: {str(error).partition(chr(10))[0]}") from error


@contextlib.contextmanager
def _says_that_it_waits(where: str) -> Iterator[None]:
    """Prints one line on stderr if the block takes longer than a cluster usually needs to come together."""
    line = f"waiting for {where}; each has to be started"
    timer = threading.Timer(SECONDS_TO_GATHER, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def start_devices() -> None:
    """Starts JAX's backend, which would otherwise start with the first use of a device.

    Raises:
      EcaJaxError: it does not start; the message has JAX's reason and the environment variables that choose devices.
    """
    try:
        jax.devices()
    except Exception as error:  # each platform's plugin has errors of its own, AssertionError among them
        settings = [f"{name}={os.environ[name]}" for name in ("JAX_PLATFORMS", "XLA_FLAGS") if os.environ.get(name)]
        reason = str(error).partition("\n")[0] or "that platform is not here, or its plugin is not installed"
        raise EcaJaxError(f"JAX cannot start its devices ({' '.join(settings) or 'no settings'}): {reason}") from error


@contextlib.contextmanager
def names_lost_processes() -> Iterator[None]:
    """Turns the error of a computation with other processes into one line, which says that one of them has died.

    On TPU and with NCCL, a collective does not fail but waits. There, JAX's heartbeat ends this process with its own
    message, "another task died".
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        first_line = str(error).partition("\n")[0]
        raise EcaJaxError(
            f"process {jax.process_index()} of {jax.process_count()} cannot go on, most likely because another one "
            f"has died (its own output says why): {first_line}. Start all processes again: the same command goes on "
            "from the newest checkpoint"
        ) from error


def leave_cluster(status: int) -> None:
    """Ends this process at once after a failure, if it is part of a cluster; otherwise returns.

    At an ordinary exit, JAX waits for the other processes, and these may be waiting for this one.
    """
    if not jax.distributed.is_initialized():
        return
    if sys.exception() is not None:
        traceback.print_exc()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where the process was started without it
        stream.flush()
    if jax.process_index() == 0:  # the others end when process 0 does: lets them say what they have to say
        time.sleep(SECONDS_TO_SPEAK)
    os._exit(status)


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the devices along one axis, `data`; None means all devices of all processes."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def batch_sharding(mesh: Mesh, batch_size: int) -> NamedSharding:
    """Examples are split over the `data` axis."""
    devices = mesh.shape["data"]
    if batch_size % devices:
        raise EcaJaxError(
            f"batch_size {batch_size} is not a multiple of the {devices} devices: "
            f"use {max(batch_size // devices, 1) * devices}"
        )
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(abstract: Any, sharding: NamedSharding) -> Any:
    """A tree of shapes and types (`jax.ShapeDtypeStruct`) with this sharding."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)


def state_shardings(mesh: Mesh, abstract_state, rules: Rules = ()):
    """A sharding for every leaf: that of the first rule whose expression matches the leaf's path, else replicated.

    A path looks like `params/layer1/0/conv1/kernel`. The path of a parameter's momentum has the same end, so one rule
    matches both.
    """
    for pattern, _ in rules:
        try:
            re.compile(pattern)
        except re.error as error:
            raise EcaJaxError(f"sharding_rules: {pattern!r} is not a regular expression: {error}") from error
    unused = {pattern for pattern, _ in rules}

    def sharding(path, leaf) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, axes in rules:
            if re.search(pattern, name):
                unused.discard(pattern)
                try:
                    if len(axes) > len(leaf.shape):
                        raise ValueError(f"{len(axes)} axes for an array of {len(leaf.shape)}")
                    result = NamedSharding(mesh, PartitionSpec(*axes))
                    result.shard_shape(leaf.shape)
                except Exception as error:  # JAX's own of an axis that is given twice is no ValueError
                    raise EcaJaxError(f"sharding rule {pattern!r} -> {axes} on {name} {leaf.shape}: {error}") from error
                return result
        return replicated(mesh)

    shardings = jax.tree_util.tree_map_with_path(sharding, abstract_state)
    if unused:
        raise EcaJaxError(f"sharding_rules: no parameter matches {', '.join(sorted(unused))}")
    return shardings
