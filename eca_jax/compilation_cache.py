"""Keeps compiled programs from one command to the next, with JAX's persistent compilation cache.

The commands turn the cache on. `import eca_jax` does not, because a program that imports a library has its own
settings.
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
"""JAX's warning about an entry of the cache; JAX then compiles as if there were no cache."""


def keep_compiled_programs() -> None:
    """Stores programs that take a second or more to compile in `default_directory()`, and reuses them the next time.

    JAX's own settings take precedence: JAX_COMPILATION_CACHE_DIR names another directory, and
    JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. In a cluster nothing is stored by default. There, only
    process 0 writes, and XLA:GPU tunes kernels in all processes together: a process that finds its program in the cache
    would leave the others waiting, or with another program than its own. A directory that all processes see is safe,
    but only the user knows which one that is.
    """
    directory, settings = default_directory(), jax.config
    if not settings.jax_enable_compilation_cache:  # type: ignore
        return
    if (given := settings.jax_compilation_cache_dir) is not None:  # type: ignore
        say_trouble(given, lambda program: None)  # the directory is the user's: nothing in it is deleted
        return
    if directory is None or jax.process_count() > 1:
        return
    with contextlib.suppress(OSError):
        forget_oldest(directory, MAX_BYTES)
    say_trouble(directory, lambda program: forget(directory, program))
    settings.update("jax_compilation_cache_dir", str(directory))


def default_directory() -> pathlib.Path | None:
    """`$XDG_CACHE_HOME/eca_jax/programs`, usually under ~/.cache; None if there is no home directory.

    Machines may share the directory: JAX's key contains the versions, the devices and the processor's instructions.
    """
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return caches / "eca_jax" / "programs" if caches.is_absolute() else None


def forget_oldest(directory: pathlib.Path, max_bytes: int) -> None:
    """Deletes the least recently used entries, until the others have at most `max_bytes`."""
    entries = [(path, path.stat()) for path in directory.glob("*-cache")]
    kept = 0
    for path, stat in sorted(entries, key=lambda entry: max(entry[1].st_atime, entry[1].st_mtime), reverse=True):
        kept += stat.st_size
        if kept > max_bytes:
            path.unlink(missing_ok=True)


def forget(directory: pathlib.Path, program: str) -> None:
    """Deletes a program's entries that could not be read or written.

    JAX writes an entry in place and never overwrites one, so an entry that was cut short by a full disk or a kill would
    stay there for ever.
    """
    with contextlib.suppress(OSError):
        for path in directory.glob(f"{program}-*-cache"):
            path.unlink(missing_ok=True)


def say_trouble(directory: str | pathlib.Path, remedy: Callable[[str], None]) -> None:
    """Replaces JAX's warnings that it cannot read or write a program's entry by one line, printed once.

    Each time, `remedy` is called with the program's name.
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
