import gc
import importlib.metadata
import os
import pathlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest

WORKER = "PYTEST_XDIST_WORKER" in os.environ
"""Started by `pytest -n`, with the environment of the process that is waiting for it."""
# The tests compile the same small programs again and again, in many processes: a directory of this session's keeps
# them all, also those of single operations, which a process that has just started has none of.
if not WORKER:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="eca_jax_tests_")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Eight virtual devices for the sharding tests; to be set before JAX starts its CPU client. Commands that the tests
# start see one device again (tests/commands.py).
DEVICES = "--xla_force_host_platform_device_count=8"
# Most of the time goes to compiling, and half of that to LLVM's optimisations, which change no statement of the tests:
# they compare programs of one process or argue from the arithmetic. Parity with PyTorch is tested with them, and
# ECA_JAX_OPTIMISED_TESTS=1 (.ci/full) tests everything with them.
QUICK = "--xla_backend_optimization_level=0"
# The older of XLA's two ways to write a fusion's loops compiles a training step in a third of the time. Later versions
# have it no longer, and end a process that asks for it.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
# The pages' code blocks (`docs`) are run on one device, as most readers run them.
flags = [] if os.environ.get("ECA_JAX_OPTIMISED_TESTS") or "parity" in " ".join(sys.argv) else [QUICK]
flags += [] if "docs" in sys.argv else [DEVICES]
if not WORKER and DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])


# Tracing makes many objects, few of them in circles: to look for these after every 700 takes a tenth of the time.
gc.set_threshold(10_000, 10, 10)


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory) -> pathlib.Path:
    """TFDS's directory for the whole session: `digits` is prepared in it, the user's own is not touched."""
    from eca_jax.data.prepare import prepare

    directory = tmp_path_factory.mktemp("tfds")
    os.environ["TFDS_DATA_DIR"] = str(directory)
    prepare("digits", str(directory))
    return directory


LONGEST = (
    "test_step.py",
    "test_loop.py",
    "test_models.py",
    "test_trajectory.py",
    "test_faults.py",
    "test_tail.py",
    "test_convert.py",
    "test_multi_label.py",
    "test_plugins.py",
    "test_cli.py",
    "test_evaluate.py",
    "test_derivatives.py",
    "test_cluster_tasks.py",
    "test_resume.py",
)
"""Files to begin with, so that two workers end together. (By itself `--dist=loadfile` begins with those of most tests,
which is why pyproject.toml has `--no-loadscope-reorder`.)"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_sessionfinish() -> None:
    if not WORKER:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="module")
def small_backbones() -> Iterator[None]:
    """The models of tests/tiny.py, which compile in seconds, for what is the same for every network."""
    from tests.tiny import brought_from_outside, register

    with brought_from_outside():
        register()
        yield


@pytest.fixture
def hang_up() -> Iterator[None]:
    """SIGHUP is not ignored, as it is where the tests are started with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
