"""Compiled programs, kept from one command to the next (JAX's persistent compilation cache).

The commands turn it on. `import eca_jax` does not: a program that imports a library has settings of its own.
"""

import contextlib
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Callable

import jax

MAX_BYTES = 2 * 1024**3
TROUBLE = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.+?)': (.*)", re.DOTALL)
"""What JAX warns of; it then compiles as if there were no cache."""


def keep_compiled_programs() -> None:
    """Keeps what takes a second or more to compile in `default_directory()`, and takes it from there the next time.

    JAX's own settings come first: JAX_COMPILATION_CACHE_DIR says where, JAX_ENABLE_COMPILATION_CACHE=false not at all.
    Nor is anything kept by default in a cluster. There only process 0 writes, and XLA:GPU tunes kernels in all
    processes together: one that finds its program leaves the others waiting, or with another program than its own. A
    directory that all of them see is safe, and which one that is the user knows.
    """
    directory, settings = default_directory(), jax.config
    if not settings.jax_enable_compilation_cache:  # type: ignore
        return
    if (given := settings.jax_compilation_cache_dir) is not None:  # type: ignore
        say_trouble(given, lambda program: None)  # what is in it is the user's
        return
    if directory is None or jax.process_count() > 1:
        return
    with contextlib.suppress(OSError):
        forget_oldest(directory, MAX_BYTES)
    say_trouble(directory, lambda program: forget(directory, program))
    settings.update("jax_compilation_cache_dir", str(directory))


def default_directory() -> pathlib.Path | None:
    """`$XDG_CACHE_HOME/eca_jax/programs`, usually under ~/.cache; None where there is no home directory.

    Machines may share it: JAX's key has the versions, the devices and the instructions that a processor knows.
    """
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return caches / "eca_jax" / "programs" if caches.is_absolute() else None


def forget_oldest(directory: pathlib.Path, max_bytes: int) -> None:
    """Deletes the entries that were not used for the longest time, until the others have no more than `max_bytes`."""
    entries = [(path, path.stat()) for path in directory.glob("*-cache")]
    kept = 0
    for path, stat in sorted(entries, key=lambda entry: max(entry[1].st_atime, entry[1].st_mtime), reverse=True):
        kept += stat.st_size
        if kept > max_bytes:
            path.unlink(missing_ok=True)


def forget(directory: pathlib.Path, program: str) -> None:
    """Deletes a program's entries that could not be read or written.

    JAX writes an entry in place and never over another, so one that a full disk or a kill has cut short would be in
    the way for good.
    """
    with contextlib.suppress(OSError):
        for path in directory.glob(f"{program}-*-cache"):
            path.unlink(missing_ok=True)


def say_trouble(directory: str | pathlib.Path, remedy: Callable[[str], None]) -> None:
    """From now on JAX's warnings that it cannot read or write a program's entry are one line, said once.

    `remedy` is called with the program's name each time.
    """
    show, said = warnings.showwarning, False

    def show_in_a_line(message, *args, **kwargs) -> None:
        nonlocal said
        trouble = TROUBLE.match(str(message))
        if trouble is None:
            show(message, *args, **kwargs)
            return
        verb, program, reason = trouble.groups()
        remedy(program)
        if not said:
            said = True
            print(
                f"warning: {verb} compiled programs in {directory}: {' '.join(reason.split())[:200]}", file=sys.stderr
            )

    warnings.showwarning = show_in_a_line
