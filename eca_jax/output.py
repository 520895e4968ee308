"""stdout and stderr where nobody reads them any more (`| head -1`, a closed terminal) or a full disk takes no more."""

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

GONE = (errno.EPIPE, errno.EIO)
"""The reader has left; the terminal has been closed."""


class OutputLost(Exception):
    """A command cannot write its results; `name` is the stream's, `reason` an OSError."""

    def __init__(self, name: str, reason: OSError):
        super().__init__(f"{name}: {os.strerror(reason.errno or errno.EIO)}")
        self.quiet = reason.errno in GONE


class _Closed(io.TextIOBase):
    """In place of a stream that the process was started without (`>&-`): Python has None there."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class _Stream:
    """A text stream that answers its first failure by `lost(name, error)`, and writes nothing from then on."""

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
            with contextlib.suppress(OSError):  # what is buffered goes there too, also at the end of Python
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
    """Of stderr: there is nowhere to say it, and the result of a command is on stdout."""


def _fill_closed_descriptors() -> None:
    """Opens nothing in place of 0, 1 and 2 where they are closed: the next file would get what is printed there."""
    while (new := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(new)


@contextlib.contextmanager
def checked_output(*, needed: bool) -> Iterator[None]:
    """Inside, every character can be printed, in any locale, and a stdout that fails ends what needs it.

    A stream that is closed is one that fails. What is said on stderr besides is never needed.

    Args:
      needed: a command's output is its result. Training goes on without it: metrics.jsonl has everything.

    Raises:
      OutputLost: where it is needed.
    """
    before = sys.stdout, sys.stderr
    if isinstance(sys.stdout, io.TextIOWrapper):
        ascii = codecs.lookup(sys.stdout.encoding).name == "ascii"  # the C locale's
        # What a file name had that could not be read in this locale comes out as it was.
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
