"""Compiled programs are kept where the documentation says, and a cache in any condition costs time at most."""

import os
import pathlib

import pytest

from eca_jax.compilation_cache import default_directory, forget_oldest
from tests.commands import run

# A small command: runs two programs, and says how many of them the cache had. With a number, no file grows beyond so
# many bytes: what is written ends in the middle, as on a full disk.
COMMAND = """
import resource, sys
import jax, jax.numpy as jnp
from eca_jax.compilation_cache import keep_compiled_programs

def first(x):
    return jnp.sin(x) + 1

def second(x):
    return jnp.cos(x) + 1

if sys.argv[1:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)
keep_compiled_programs()
x = jax.device_put(0.0)
hits.clear()
print(float(jax.jit(first)(x)), float(jax.jit(second)(x)), len(hits), "hits")
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

    def command(*args: str, **env: str) -> tuple[str, str]:
        """(what it printed, its warnings)"""
        done = run("-c", COMMAND, *args, **{"XDG_CACHE_HOME": str(tmp_path), **env})
        assert done.returncode == 0
        return done.stdout.strip(), done.stderr.strip()

    return command


def entries(home: pathlib.Path, program: str = "*") -> list[pathlib.Path]:
    return list((home / "eca_jax" / "programs").glob(f"{program}-cache"))


def test_the_second_start_finds_what_the_first_compiled_and_replaces_what_is_damaged(command, tmp_path):
    assert command() == ("1.0 2.0 0 hits", "")
    for entry, damage in zip(
        (*entries(tmp_path, "jit_first-*"), *entries(tmp_path, "jit_second-*")), (b"", b"\0" * 9), strict=True
    ):
        entry.write_bytes(damage)
    printed, warned = command()
    assert printed == "1.0 2.0 0 hits"
    assert warned.startswith("warning: reading compiled programs in ")
    assert warned.count("\n") == 0
    assert command() == ("1.0 2.0 2 hits", "")


def test_a_full_disk_costs_one_line_and_leaves_no_half_an_entry(command, tmp_path):
    printed, warned = command("100")
    assert printed == "1.0 2.0 0 hits"
    assert warned.startswith("warning: writing compiled programs in ")
    assert warned.count("\n") == 0
    assert not entries(tmp_path)


def test_a_home_that_cannot_be_written_costs_one_line(command):
    printed, warned = command(XDG_CACHE_HOME="/dev/null")
    assert printed == "1.0 2.0 0 hits"
    assert warned.startswith("warning: ")
    assert warned.count("\n") == 0


def test_jax_s_own_settings_come_first(command, tmp_path):
    assert command(JAX_ENABLE_COMPILATION_CACHE="false") == ("1.0 2.0 0 hits", "")
    assert command(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine")) == ("1.0 2.0 0 hits", "")
    assert not entries(tmp_path)
    assert list((tmp_path / "mine").glob("jit_first-*"))


def test_trouble_with_a_directory_of_the_user_s_is_one_line_too(command, tmp_path):
    printed, warned = command(JAX_COMPILATION_CACHE_DIR="/dev/null/nope")
    assert printed == "1.0 2.0 0 hits"
    assert warned.startswith("warning: reading compiled programs in /dev/null/nope: ")
    assert warned.count("\n") == 0


def test_the_directory_is_xdg_s(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_directory() == pathlib.Path("/home/me/.cache/eca_jax/programs")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert default_directory() == pathlib.Path("/var/cache/me/eca_jax/programs")


def test_the_entries_that_were_not_used_longest_go_first(tmp_path):
    for age, name in enumerate(("new", "used", "old", "oldest")):
        entry = tmp_path / f"jit_{name}-cache"
        entry.write_bytes(b"0" * 10)
        os.utime(entry, (1e9 - age, 1e9 - age))
    os.utime(tmp_path / "jit_used-cache", (2e9, 0))  # read since it was written, long ago
    (tmp_path / "other").write_bytes(b"0" * 100)
    forget_oldest(tmp_path, 20)
    assert {path.name for path in tmp_path.iterdir()} == {"jit_new-cache", "jit_used-cache", "other"}
