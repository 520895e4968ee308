"""JAX's devices and the cluster: what cannot start is one line, and a process that waits for others says so."""

import io
import threading

import jax
import pytest

from eca_jax import cli, sharding
from eca_jax.errors import EcaJaxError
from eca_jax.sharding import ClusterConfig, initialize_cluster, start_devices
from tests.commands import start

TWO = ClusterConfig("localhost:1234", 2, 0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"JAX_PLATFORMS": "foo"}, "JAX cannot start its devices (JAX_PLATFORMS=foo"),
        ({"JAX_ENABLE_X64": "maybe"}, "JAX does not take a setting of the environment: invalid truth value 'maybe'"),
    ],
)
def test_settings_that_jax_cannot_take_are_one_line(setting, message):
    process = start("-c", "import sys; from eca_jax.cli import main; sys.exit(main(['evaluate']))", **setting)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {message}")


@pytest.mark.parametrize(
    "command", ["train --plugin tests.tiny_plugin", "evaluate", "predict x.png", "convert a b", "export a b.onnx"]
)
def test_every_command_that_computes_starts_the_devices_first(monkeypatch, capsys, command):
    def fails() -> None:
        raise AssertionError  # of JAX's CUDA plugin, where there is no CUDA

    monkeypatch.setattr(jax, "devices", fails)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert cli.main(command.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: JAX cannot start its devices (JAX_PLATFORMS=cuda")
    assert err.endswith("that platform is not here, or its plugin is not installed\n")


def test_devices_that_are_there_start():
    start_devices()


@pytest.mark.parametrize(
    "coordinator", ["localhost", ":1234", "localhost:", "localhost:0", "localhost:99999999", "a:٤٤"]
)
def test_a_coordinator_has_a_host_and_a_port(coordinator):
    with pytest.raises(EcaJaxError, match=r"^cluster.coordinator: expected HOST:PORT, a port from 1 to 65535, got "):
        ClusterConfig(coordinator, 2, 0)
    assert ClusterConfig("[::1]:65535", 2, 0).process_id == 0


def test_a_second_run_in_one_process_joins_nothing():
    """In a notebook; JAX, which has started here, can join no cluster any more."""
    jax.devices()
    initialize_cluster(ClusterConfig())
    with pytest.raises(EcaJaxError, match=r"^cluster: cannot join 2 processes at localhost:1234: .* called before"):
        initialize_cluster(TWO)


def test_a_process_that_waits_for_others_says_for_whom(monkeypatch):
    class Said(io.StringIO):
        def flush(self) -> None:
            said.set()

    said, stderr = threading.Event(), Said()

    def others_are_late(*args, **kwargs) -> None:
        assert args == ("localhost:1234", 2, 0)
        assert said.wait(60)

    monkeypatch.setattr(jax.distributed, "initialize", others_are_late)
    monkeypatch.setattr(sharding, "SECONDS_TO_GATHER", 0.01)
    monkeypatch.setattr("sys.stderr", stderr)
    initialize_cluster(TWO)
    assert stderr.getvalue() == "waiting for 2 processes at localhost:1234; each has to be started\n"
