"""Signals that end a run early, with its state saved."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from eca_jax.interrupts import MayLeave, listening, tell

SECONDS_TO_END = 1
"""The time that the main thread has to end by itself if there is nothing to save."""


class Stopped(Exception):
    """A signal ended an evaluation."""


class StopSignal:
    """A context manager that notices SIGTERM (a preemption), SIGHUP (a closed terminal) and Ctrl-C.

    The run asks at certain points whether a signal has come (`requested`); then it saves and ends. In a command, a
    second Ctrl-C ends the process at once, but still waits for a checkpoint that is being written. Before the first
    step there is nothing to save, and any signal ends the process at once. If a program calls `train`, the second
    Ctrl-C goes to that program.

    In a cluster, JAX's preemption service listens for SIGTERM, and all processes stop at the same step.
    """

    def __init__(self):
        self.received: int | None = None
        self.waits_for: str | None = None
        """What has to end before the run can save and stop; None if nothing would be lost by ending at once."""
        self.saving: Callable[[], bool] = lambda: False
        """Whether a checkpoint is being written."""
        self._interrupts = 0
        self._in_command = False
        self._previous = {}
        self._asked = 0
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            return self
        if jax.process_count() > 1:
            if self._exits.enter_context(listening(lambda _: lambda: None)):
                self._previous = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler)}
            return self
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # nohup
        numbers = (signal.SIGTERM, signal.SIGINT, *(() if ignored else (signal.SIGHUP,)))
        self._in_command = self._exits.enter_context(listening(self._hear))
        self._previous = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._exits.close()

    @contextlib.contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Sets `waits_for` inside the block, if ending at once would lose something."""
        before = self.waits_for
        self.waits_for = before and what
        try:
            yield
        finally:
            self.waits_for = before

    def _receive(self, number: int, _) -> None:
        """The signal handler, which Python calls in the main thread as soon as it can."""
        self.received = number
        if number == signal.SIGINT and not self._in_command:
            signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
            print("stopping after this step; Ctrl-C once more stops at once", file=sys.stderr)

    def _hear(self, number: int) -> MayLeave:
        """The listener for the command's thread, which is called at once."""
        self.received = number
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            return self._leave_now(patient=self._interrupts == 2)
        if self.waits_for is not None:
            tell(f"stopping after {self.waits_for}, and saving; Ctrl-C once more leaves at once")
        name, heard = signal.Signals(number).name, time.monotonic()

        def may_leave() -> str | None:
            if self.waits_for is not None or time.monotonic() < heard + SECONDS_TO_END:
                return None
            return f"stopped by {name} before its first step; the same command starts it again"

        return may_leave

    def _leave_now(self, patient: bool) -> MayLeave:
        if patient and self.saving():
            tell("waiting for the checkpoint that is being written; Ctrl-C once more leaves without it")

        def may_leave() -> str | None:
            if patient and self.saving():
                return None
            return "interrupted; the same command goes on from the newest checkpoint"

        return may_leave

    def requested(self) -> bool:
        """Whether to stop now. All processes of a cluster call it at the same points and get the same answers."""
        self._asked += 1
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self._asked):
            self.received = signal.SIGTERM
        return self.received is not None
