"""Measures how many images a second a configuration's data path delivers on this machine."""

import dataclasses
import os
import time

import jax

from eca_jax.config import Config
from eca_jax.data.loader import train_batches
from eca_jax.data.sources import open_source
from eca_jax.sharding import batch_sharding, make_mesh


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Training images that were read, decoded, augmented and put onto the devices."""

    images: int
    seconds: float
    cpu_seconds: float
    """CPU time of all threads, in user code and in the kernel."""
    cores: int
    """The number of cores that this process may use."""

    @property
    def per_second(self) -> float:
        return self.images / self.seconds

    @property
    def per_core(self) -> float:
        """Images per second of CPU time; other load on the machine hardly changes it."""
        return self.images / self.cpu_seconds

    def describe(self) -> str:
        """A line."""
        return (
            f"input: {self.per_second:,.0f} images/s on {self.cores} cores; {1e3 / self.per_core:.2f} ms of CPU an "
            f"image, so {self.per_core:,.0f} images/s a core"
        )

    def describe_need(self, name: str, chips: int, per_second: float) -> str:
        """A line: how many cores like these are needed for a step that takes `per_second` images on all chips."""
        return (
            f"{name}: the step takes at most {per_second:,.0f} images/s, {per_second / chips:,.0f} a chip (its "
            f"roofline), for which the input needs {per_second / chips / self.per_core:.1f} such cores a chip, "
            f"{per_second / self.per_core:.0f} in all"
        )


def measure_throughput(config: Config, seconds: float) -> Throughput:
    """Loads training batches as `train.py` does, and drops them, for at least so many seconds.

    Raises:
      EcaJaxError: the data set is missing, or some of its records cannot be read.
    """
    source = open_source(config.data.name, config.data.train_split, config.data.data_dir, config.data.keys)
    sharding = batch_sharding(make_mesh(), config.batch_size)
    in_turn = config.data.num_threads  # a thread makes a batch by itself: this many end at the same time

    def load(turn: int) -> None:
        for batch in train_batches(
            source,
            config.task,
            seed=config.seed,
            batch_size=config.batch_size,
            steps=range(turn * in_turn, (turn + 1) * in_turn),
            sharding=sharding,
            num_threads=config.data.num_threads,
            repeats=config.data.repeats,
        ):
            jax.block_until_ready(batch)

    load(0)  # files into the page cache, libraries into memory
    start, cpu, turns = time.perf_counter(), time.process_time(), 0
    while turns == 0 or time.perf_counter() - start < seconds:
        turns += 1
        load(turns)
    return Throughput(
        images=turns * in_turn * config.batch_size,
        seconds=time.perf_counter() - start,
        cpu_seconds=time.process_time() - cpu,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )
