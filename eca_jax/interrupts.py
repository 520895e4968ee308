"""Signals that end a command, answered at once whatever it is doing.

Python runs the handler of a signal between two of its own instructions, and there may be none for minutes while XLA
compiles. A thread is told of the signal at once (`signal.set_wakeup_fd`). It says what happens, and where the rest of
the program cannot end by itself it ends the process: an exception in the middle of a compilation would leave threads of
the compiler behind, which crash when Python takes itself apart.

Only the commands are `watched`. In a program that imports the library, signals stay that program's own affair.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_SIGNAL = 128
"""Plus the signal's number: what a shell reports of a process that ended by it. A scheduler starts such a run again."""
POLL_SECONDS = 0.1

MayLeave = Callable[[], str | None]
"""Asked again and again after a signal: the line to leave with, once nothing would be lost; None before."""
Listener = Callable[[int], MayLeave]


def leave_at_once(number: int) -> MayLeave:
    """The listener of a command that has nothing to save."""
    return lambda: "interrupted"


class _Watch:
    """What a command shares with its thread."""

    def __init__(self, leave: Callable[[int], None]):
        self.leave = leave
        self.listener: Listener = leave_at_once


_watch: _Watch | None = None


def tell(line: str) -> None:
    """Writes a line to stderr from whichever thread: past Python's stream, whose lock another one may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


@contextlib.contextmanager
def watched(leave: Callable[[int], None] = os._exit) -> Iterator[None]:
    """Answers Ctrl-C as the present listener says; `leave` ends the process with the exit status that it gets."""
    global _watch
    if _watch is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    previous_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    previous = signal.signal(signal.SIGINT, lambda *_: None)  # without a handler of Python's the thread hears nothing
    _watch = _Watch(leave)
    thread = threading.Thread(target=_run, args=(_watch, read), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous_fd)
        signal.signal(signal.SIGINT, previous)
        _watch = None
        os.close(write)
        thread.join()
        os.close(read)


def _run(watch: _Watch, read: int) -> None:
    """Of the thread: from the first signal to the end of the command."""
    number, may_leave = 0, None
    while True:
        ready, _, _ = select.select([read], [], [], None if may_leave is None else POLL_SECONDS)
        heard = os.read(read, 64) if ready else b"\0"
        if not heard:  # the other end was closed
            return
        for number in (byte for byte in heard if byte in ENDING):
            may_leave = watch.listener(number)
        line = may_leave() if may_leave else None
        if line is not None:
            tell(line)
            watch.leave(EXIT_SIGNAL + number)
            return


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[bool]:
    """The listener inside, in a command; whether this is one."""
    watch = _watch
    if watch is None:
        yield False
        return
    previous, watch.listener = watch.listener, listener
    try:
        yield True
    finally:
        watch.listener = previous
