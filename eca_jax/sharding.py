"""Processes, devices and who holds what: the only file that says PartitionSpec."""

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
"""After so long without a sign of life a process counts as dead, and JAX ends the others."""
SECONDS_TO_SPEAK = 3
SECONDS_TO_GATHER = 5


@dataclasses.dataclass(frozen=True)
class ClusterConfig(TypedFields, at="cluster"):
    """Several processes. Nothing has to be said where JAX detects the cluster (TPU pods, Slurm, Open MPI)."""

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
    """Joins the other processes where a cluster is asked for or detected. To be called before JAX touches a device.

    Where it has touched one already, as in a notebook that trains twice, and no cluster is asked for, nothing is done:
    in a cluster that JAX detects the first call has joined.

    Raises:
      EcaJaxError: the others did not come in JAX's time (5 minutes), or JAX has touched a device.
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
    """Says so on stderr, once, where what is done inside takes longer than a cluster needs to come together."""
    line = f"waiting for {where}; each has to be started"
    timer = threading.Timer(SECONDS_TO_GATHER, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def start_devices() -> None:
    """Starts JAX's backend, which else starts with whatever touches a device first.

    Raises:
      EcaJaxError: names the settings that say on what, and what JAX says of them.
    """
    try:
        jax.devices()
    except Exception as error:  # each platform's plugin has errors of its own, AssertionError among them
        settings = [f"{name}={os.environ[name]}" for name in ("JAX_PLATFORMS", "XLA_FLAGS") if os.environ.get(name)]
        reason = str(error).partition("\n")[0] or "that platform is not here, or its plugin is not installed"
        raise EcaJaxError(f"JAX cannot start its devices ({' '.join(settings) or 'no settings'}): {reason}") from error


@contextlib.contextmanager
def names_lost_processes() -> Iterator[None]:
    """Makes one line of the errors with which computations end that another process took part in.

    Where a collective does not fail but waits (TPU, NCCL), JAX's heartbeat ends this process, with a message of its
    own: "another task died".
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
    """Ends a process of a cluster in which something failed, at once; returns where there is no cluster.

    At an ordinary exit JAX waits for the others, which may be waiting for this one.
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
    """The devices (all, of all processes) along one axis, `data`."""
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
    """Shapes and types (a tree of `jax.ShapeDtypeStruct`), with their place."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)


def state_shardings(mesh: Mesh, abstract_state, rules: Rules = ()):
    """A sharding for every leaf: the first rule whose expression is found in the leaf's path, else replicated.

    Paths read `params/layer1/0/conv1/kernel`; the optimiser's momentum of a parameter ends in the same path, so one
    rule serves both.
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
