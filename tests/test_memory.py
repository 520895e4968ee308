"""What there is of memory, what a program needs of it, and the line where that is too much. Nothing is filled up."""

import pathlib
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eca_jax import memory
from eca_jax.errors import EcaJaxError
from eca_jax.memory import GIB, Fitting, Room, device_room, expect_room, host_room, names_lack_of_memory, needed_by
from eca_jax.sharding import make_mesh, replicated

MEMINFO = "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\nSwapFree: 1048576 kB\n"  # 8 and 1 GiB
V2 = {"proc/self/cgroup": "0::/user/job\n"}
V1 = {"proc/self/cgroup": "5:devices:/\n4:cpu,memory:/docker/1234\n0::/\n"}


def group(version: int, path: str, limit: str, used: int, cached: int = 0) -> dict[str, str]:
    """The files of a control group, as the kernel's documentation lays them out."""
    if version == 2:
        top, names, prefix = f"sys/fs/cgroup/{path}", ("memory.max", "memory.current"), ""
    else:
        top, prefix = f"sys/fs/cgroup/memory/{path}", "total_"
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    stat = f"{prefix}anon 5\n{prefix}inactive_file {cached}\n"
    return {f"{top}/{names[0]}": f"{limit}\n", f"{top}/{names[1]}": f"{used}\n", f"{top}/memory.stat": stat}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 9.0),  # swap is memory too
        (V2, 9.0),
        ({**V2, **group(2, "user/job", "max", GIB)}, 9.0),
        ({**V2, **group(2, "user/job", str(4 * GIB), GIB)}, 3.0),
        ({**V2, **group(2, "user/job", str(4 * GIB), 4 * GIB, cached=2 * GIB)}, 2.0),  # the cache is given back
        ({**V2, **group(2, "user/job", "max", GIB), **group(2, "user", str(2 * GIB), GIB)}, 1.0),
        ({**V2, **group(2, "user/job", str(2 * GIB), 3 * GIB)}, 0.0),
        ({**V1, **group(1, "docker/1234", "9223372036854771712", GIB)}, 9.0),  # no limit, in version 1
        ({**V1, **group(1, "docker/1234", str(4 * GIB), 2 * GIB, cached=GIB)}, 3.0),
        ({**V1, **group(1, "", str(4 * GIB), 2 * GIB)}, 2.0),  # in a container: its group is the mount
    ],
)
def test_the_least_of_what_is_free_and_of_the_limits_counts(tmp_path, files, expected):
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host_room(tmp_path).bytes == expected * GIB


def test_this_machine_has_some_memory_and_not_more_than_was_built_in():
    built_in = {line.split()[0]: line.split()[1] for line in pathlib.Path("/proc/meminfo").read_text().splitlines()}
    assert 0 < host_room().bytes <= 1024 * (int(built_in["MemTotal:"]) + int(built_in["SwapTotal:"]))


def test_a_limit_of_the_address_space_counts(monkeypatch):
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + GIB, resource.RLIM_INFINITY))
    assert 0 < host_room().bytes <= 1.1 * GIB


class Chip:
    platform, process_index, device_kind = "gpu", 0, "NVIDIA H100"

    def __init__(self, stats):
        self.memory_stats = lambda: stats


def test_an_accelerator_says_itself_how_much_it_has():
    assert device_room([Chip({"bytes_limit": 60 * GIB, "bytes_in_use": GIB})]) == Room(60 * GIB, "NVIDIA H100")
    assert device_room([Chip(None)]) is None  # another allocator: unknown
    expect_room("a step", 10**15, None, [])


def test_a_donated_argument_counts_once_and_the_devices_of_a_cpu_share():
    size = 4 * 1000 * 1000
    x = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    chip, cpu = Room(GIB, "a chip"), device_room(jax.devices())
    for sharding, devices in ((None, 1), (replicated(make_mesh()), 8)):
        function = jax.jit(lambda x, y: (x + 1, y * 2), donate_argnums=0, out_shardings=sharding, in_shardings=sharding)
        program = function.lower(x, x).compile()
        assert needed_by(program, chip) == pytest.approx(3 * size, rel=0.01)  # x or its successor, y, y * 2
        assert needed_by(program, cpu) == pytest.approx(devices * size, rel=0.01)


def test_what_does_not_fit_is_a_line_with_the_remedies_in_their_order():
    room = Room(10 * GIB, "this machine", free=True)
    expect_room("a step", 10 * GIB, room, ["less"])
    with pytest.raises(EcaJaxError) as error:
        expect_room("a step", 10 * GIB + 2**28, room, ["less", "much less"], at_least=True)
    assert str(error.value) == (
        "out of memory: a step needs at least 10.25 GiB, and this machine has 10.00 GiB free. "
        "What helps, in this order: (1) less, (2) much less"
    )


@pytest.mark.parametrize(
    "allocate",
    [lambda: jnp.zeros(2**50, jnp.uint8).block_until_ready(), lambda: np.zeros(2**60, np.uint8)],  # of no address space
)
def test_an_allocation_that_fails_is_the_same_line(allocate):
    with (
        pytest.raises(EcaJaxError, match=r"^out of memory: none is left for a step \(.*llocat.*GiB free\. .*1\) less$"),
        names_lack_of_memory("a step", ["less"], jax.devices()),
    ):
        allocate()


def test_a_function_is_compiled_once_for_shapes_and_refused_where_it_does_not_fit(monkeypatch):
    double = Fitting(jax.jit(lambda x: {"y": 2 * x["x"]}), "doubling", ["halving"])
    for size in (3, 5, 3):
        np.testing.assert_array_equal(double({"x": jnp.arange(size)})["y"], 2 * np.arange(size))
    assert len(double.programs) == 2
    monkeypatch.setattr(memory, "_available", lambda root: 2**20)
    with pytest.raises(EcaJaxError, match=r"doubling needs 4\.0 MiB, and this machine has 1\.0 MiB free.*halving$"):
        double({"x": jax.ShapeDtypeStruct((2**20,), jnp.int32)})  # nothing is allocated


def test_other_errors_of_the_runtime_stay_what_they_are():
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INVALID"),
        names_lack_of_memory("a step", ["less"], jax.devices()),
    ):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: not about memory")


def test_the_module_s_own_numbers_are_read_by_lines(tmp_path):
    (tmp_path / "numbers").write_text("a 1\nb: 2 kB\n\nc\n")
    assert memory._numbers(tmp_path / "numbers") == {"a": 1, "b:": 2}
