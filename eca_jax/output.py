"""Handles a stdout or stderr that nobody reads any more (`| head -1`, a closed terminal), or that is on a full disk."""

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

GONE = (errno.EPIPE, errno.EIO)
"""The errors when the reader is gone and when the terminal was closed."""


class OutputLost(Exception):
    """A command cannot write its results; `name` is the stream's, `reason` an OSError."""

    def __init__(self, name: str, reason: OSError):
        super().__init__(f"{name}: {os.strerror(reason.errno or errno.EIO)}")
        self.quiet = reason.errno in GONE


class _Closed(io.TextIOBase):
    """Stands for a stream that was closed when the process started (`>&-`), where Python has None."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class _Stream:
    """A text stream that calls `lost(name, error)` when it fails for the first time, and then writes nothing more."""

    def __init__(self, stream: Any, name: str, lost: Callable[[str, OSError], None]):
        self._stream, self._name, self._lost = stream, name, lost
        self._failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._do(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._do(self._stream.flush)

    def _do(self, function: Callable, *args: Any) -> None:
        if self._failed:
            return
        try:
            function(*args)
        except OSError as error:
            self._failed = True
            with contextlib.suppress(OSError):  # discards what is buffered too, also when Python exits
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self._stream.fileno())
                os.close(nothing)
            self._lost(self._name, error)


def _stop(name: str, error: OSError) -> None:
    raise OutputLost(name, error) from error


def _go_on(name: str, error: OSError) -> None:
    if error.errno not in GONE:
        print(f"warning: {name}: {os.strerror(error.errno or errno.EIO)}; going on without it", file=sys.stderr)


def _go_on_silently(name: str, error: OSError) -> None:
    """For a lost stderr: it cannot be reported anywhere, and the result of a command is on stdout."""


def _fill_closed_descriptors() -> None:
    """Opens /dev/null for 0, 1 and 2 if they are closed; else the next opened file would get what is printed there."""
    while (new := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(new)


@contextlib.contextmanager
def checked_output(*, needed: bool) -> Iterator[None]:
    """Inside the block, every character can be printed in any locale, and a failing stdout is handled.

    A closed stream counts as a failing one. A failing stderr is always ignored.

    Args:
      needed: whether stdout has the command's result. Training does not need it: metrics.jsonl has everything.

    Raises:
      OutputLost: stdout fails and is needed.
    """
    before = sys.stdout, sys.stderr
    if isinstance(sys.stdout, io.TextIOWrapper):
        ascii = codecs.lookup(sys.stdout.encoding).name == "ascii"  # the C locale's
        # Parts of file names that cannot be decoded in this locale are written as the bytes that they were.
        sys.stdout.reconfigure(encoding="utf-8" if ascii else None, errors="surrogateescape")
    _fill_closed_descriptors()
    sys.stdout = _Stream(before[0] or _Closed(), "stdout", _stop if needed else _go_on)
    sys.stderr = _Stream(before[1] or _Closed(), "stderr", _go_on_silently)
    try:
        yield
    finally:
        streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = before
        for stream in streams:
            stream.flush()
