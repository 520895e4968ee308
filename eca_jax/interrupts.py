"""Reacts at once to signals that end a command, whatever the command is doing.

Python runs a signal handler between two of its own instructions, and while XLA compiles there may be none for minutes.
So a thread waits for signals (`signal.set_wakeup_fd`). It prints what happens. If the rest of the program cannot end by
itself, the thread ends the process: an exception in the middle of a compilation would leave threads of the compiler
behind, and these crash when Python exits.

Only the commands are `watched`. A program that imports the library handles its signals itself.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_SIGNAL = 128
"""The exit status is this plus the signal's number, as shells report it; schedulers then start the run again."""
POLL_SECONDS = 0.1

MayLeave = Callable[[], str | None]
"""Called again and again after a signal. Returns None as long as ending would lose something, then a line to print."""
Listener = Callable[[int], MayLeave]


def leave_at_once(number: int) -> MayLeave:
    """The listener of a command that has nothing to save."""
    return lambda: "interrupted"


class _Watch:
    """The data that a command shares with its thread."""

    def __init__(self, leave: Callable[[int], None]):
        self.leave = leave
        self.listener: Listener = leave_at_once


_watch: _Watch | None = None


def tell(line: str) -> None:
    """Writes a line to stderr from any thread, without Python's stream, whose lock another thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


@contextlib.contextmanager
def watched(leave: Callable[[int], None] = os._exit) -> Iterator[None]:
    """Handles Ctrl-C as the current listener says; `leave` ends the process with the exit status that it is given."""
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
    """The thread's function: waits for signals until the command ends."""
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
    """Sets the listener inside the block, if this is a command; yields whether it is one."""
    watch = _watch
    if watch is None:
        yield False
        return
    previous, watch.listener = watch.listener, listener
    try:
        yield True
    finally:
        watch.listener = previous
