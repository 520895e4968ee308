"""Chips, their published figures, and devices for which programs can be compiled without the hardware.

A target is a chip and a number of chips: `v5e-8`, `v4-64`, `h100x16`.
"""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from eca_jax.errors import EcaJaxError, nearest

GPUS_PER_HOST = 8
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class GpuDescription:
    """The properties of a device that XLA:GPU needs; for SXM boards, as the CUDA driver reports them."""

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    shared_memory_per_multiprocessor: int
    l2_bytes: int
    clock_ghz: float
    fp32_lanes: int
    """The float32 lanes of one multiprocessor."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip, in bytes, bytes/s and FLOP/s."""

    name: str
    hbm: int
    """All the memory of the chip; a program gets less of it, see `share`."""
    peak_flops: float
    """bfloat16 with float32 accumulation, dense."""
    hbm_bandwidth: float
    interconnect: float
    """What a chip sends over all its links (half of the bidirectional figure): ICI, or NVLink within a host."""
    network: float | None = None
    """GPU: what a chip sends to other hosts (with one network card for each GPU, as in NVIDIA's DGX)."""
    share: float = 1.0
    """The share of `hbm` for a program: JAX takes 75% of a GPU by default. XLA:TPU has its own limit."""
    topologies: tuple[tuple[int, str], ...] = ()
    """TPU: (chips, shape of the slice)."""
    google_name: str = ""
    """TPU: Google's accelerator type, with n for its number."""
    cores: int = 1
    """TPU: how much one chip counts in the number of the accelerator type (v4 and v5p: its two TensorCores)."""
    gpu: GpuDescription | None = None

    @property
    def platform(self) -> str:
        """JAX's name of the platform."""
        return "cuda" if self.gpu else "tpu"


_SLICES_2D = (
    (1, "1x1"),
    (4, "2x2"),
    (8, "2x4"),
    (16, "4x4"),
    (32, "4x8"),
    (64, "8x8"),
    (128, "8x16"),
    (256, "16x16"),
)
_SLICES_3D = (
    (4, "2x2x1"),
    (8, "2x2x2"),
    (16, "2x2x4"),
    (32, "2x4x4"),
    (64, "4x4x4"),
    (128, "4x4x8"),
    (256, "4x8x8"),
    (512, "8x8x8"),
    (1024, "8x8x16"),
    (2048, "8x16x16"),
    (4096, "16x16x16"),
)
_A100 = GpuDescription("NVIDIA A100-SXM4-80GB", (8, 0), 108, 167936, 41943040, 1.41, 64)
_H100 = GpuDescription("NVIDIA H100 80GB HBM3", (9, 0), 132, 233472, 52428800, 1.98, 128)
_H200 = GpuDescription("NVIDIA H200", (9, 0), 132, 233472, 52428800, 1.98, 128)

# TPU: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "Key specifications". v5e 197 TFLOPs, 16 GB, 819 GBps, 400 GBps
# bidirectional; v6e 918, 32 GB, 1600 GBps, 800; v5p 459, 95 GB, 2765 GBps, 1200; v4 275, 32 GiB, 1200 GBps, 2400 Gbps.
# GPU: NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM (dense bfloat16 312, 989, 989 TFLOPS; 2.039, 3.35,
# 4.8 TB/s; NVLink 600, 900, 900 GB/s bidirectional); memory as CUDA reports it; one 200 (A100) or 400 Gb/s card a GPU.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 32 * GIB, 275e12, 1.2e12, 300e9, topologies=_SLICES_3D, google_name="v4-{n}", cores=2),
        Chip("v5e", 16 * GIB, 197e12, 819e9, 200e9, topologies=_SLICES_2D, google_name="v5litepod-{n}"),
        Chip("v5p", 95 * GIB, 459e12, 2.765e12, 600e9, topologies=_SLICES_3D, google_name="v5p-{n}", cores=2),
        Chip("v6e", 32 * GIB, 918e12, 1.6e12, 400e9, topologies=_SLICES_2D, google_name="v6e-{n}"),
        Chip("a100", 84978434048, 312e12, 2.039e12, 300e9, 25e9, share=0.75, gpu=_A100),
        Chip("h100", 84978434048, 989e12, 3.35e12, 450e9, 50e9, share=0.75, gpu=_H100),
        Chip("h200", 141 * 10**9, 989e12, 4.8e12, 450e9, 50e9, share=0.75, gpu=_H200),
    )
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A number of chips of one kind."""

    chip: Chip
    chips: int

    @property
    def name(self) -> str:
        """The name on the command line: 'v5e-8', 'h100x16'."""
        return _spelled(self.chip, self.chips)

    @property
    def hosts(self) -> int:
        """The number of hosts with eight GPUs each."""
        return -(-self.chips // GPUS_PER_HOST)

    @property
    def topology(self) -> str:
        """XLA's name: 'v5e:2x4', or hosts x 1 x GPUs of a host."""
        if self.chip.gpu:
            return f"{self.hosts}x1x{self.chips // self.hosts}"
        return f"{self.chip.name}:{dict(self.chip.topologies)[self.chips]}"

    @property
    def link(self) -> float:
        """Bytes/s that a chip sends in a ring over all chips; across hosts, a GPU's network card is the limit."""
        return self.chip.network if self.chip.network and self.hosts > 1 else self.chip.interconnect

    def describe(self) -> str:
        """A description for people who rent such chips."""
        if self.chip.gpu:
            return f"{self.chips} x {self.chip.gpu.name}, {self.hosts} host{'s' * (self.hosts > 1)}"
        google = self.chip.google_name.format(n=self.chips * self.chip.cores)
        return f"{self.chips} chips, topology {self.topology}, Google's accelerator type {google}"


def parse_target(text: str) -> Target:
    """'v5e-8' -> 8 chips v5e; 'h100x16' -> 16 GPUs on 2 hosts. The number counts chips, also for v4 and v5p.

    Raises:
      EcaJaxError: unknown chip, or a number of which there is no slice.
    """
    match = re.fullmatch(r"([a-z]\w*?)(?:-|x)(\d+)", text)
    chip = CHIPS.get(match[1]) if match else None
    if match is None or chip is None or text != _spelled(chip, int(match[2])):
        known = [
            _spelled(c, n) for c in CHIPS.values() for n in (dict(c.topologies) if c.topologies else (1, 2, 4, 8, 16))
        ]
        raise EcaJaxError(f"--target: unknown target {text!r}.{nearest(text, known)} Chips: {', '.join(CHIPS)}.")
    chips = int(match[2])
    if chip.gpu and (chips == 0 or (chips > GPUS_PER_HOST and chips % GPUS_PER_HOST)):
        raise EcaJaxError(f"--target: {text}: expected 1 to {GPUS_PER_HOST} GPUs, or whole hosts of {GPUS_PER_HOST}")
    if chip.topologies and chips not in dict(chip.topologies):
        sizes = ", ".join(str(n) for n, _ in chip.topologies)
        raise EcaJaxError(f"--target: there is no {text}: slices of {chip.name} have {sizes} chips")
    return Target(chip, chips)


def _spelled(chip: Chip, chips: int) -> str:
    return f"{chip.name}{'x' if chip.gpu else '-'}{chips}"


def topology_devices(target: Target) -> Sequence[Any]:
    """Devices for which programs can be compiled, but not run. For TPU, only one process at a time may load libtpu.

    Raises:
      EcaJaxError: the compiler is not installed, or another process has it.
    """
    chip = target.chip
    if chip.gpu:
        _require(("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"), "XLA's compiler for CUDA", "cuda13")
        options = {"target_config": _target_config(chip, chip.gpu)}
        return topologies.get_topology_desc(chip.name, "cuda", topology=target.topology, **options).devices
    _require(("libtpu",), "libtpu, XLA's compiler for TPU,", "tpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server where there is no TPU
    try:
        return topologies.get_topology_desc(target.topology, "tpu", **_slice_options(target)).devices
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" not in str(error):
            raise
        raise EcaJaxError(
            f"--target {target.name}: another process uses libtpu, which serves one at a time: wait for its end, "
            "or remove /tmp/libtpu_lockfile if there is none"
        ) from error


def _slice_options(target: Target) -> dict[str, Any]:
    """libtpu's options: the two cores of a v4 or v5p form one device; a single chip is a host of its own."""
    megacore = {"chip_config_name": "megacore"} if target.chip.cores == 2 else {}
    return megacore | ({"chips_per_host_bounds": (1, 1, 1)} if target.chips == 1 else {})


def _require(modules: Sequence[str], what: str, extra: str) -> None:
    def present(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # its parent package
            return False

    if not any(present(module) for module in modules):
        raise EcaJaxError(f"--target: {what} is not installed: pip install 'eca-jax[{extra}]'")


def _target_config(chip: Chip, gpu: GpuDescription) -> str:
    """XLA's GpuTargetConfigProto as text. The limits that are spelled out are those of every NVIDIA GPU since Volta."""
    major, minor = gpu.compute_capability
    features = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_memory_per_multiprocessor}
  shared_memory_per_block_optin: {gpu.shared_memory_per_multiprocessor - 1024}
  core_count: {gpu.multiprocessors}
  fpus_per_core: {gpu.fp32_lanes}
  clock_rate_ghz: {gpu.clock_ghz}
  l2_cache_size: {gpu.l2_bytes}
  memory_bandwidth: {round(chip.hbm_bandwidth)}
  device_memory_size: {chip.hbm}
  cuda_compute_capability {{ major: {major} minor: {minor} {features} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "{gpu.name}"
"""
