"""Signals that end a run early, with its state saved."""

import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """A signal ended an evaluation."""


class StopSignal:
    """Notices SIGTERM (a preemption) and the first Ctrl-C while it is entered; a second Ctrl-C interrupts at once.

    In a cluster JAX's own preemption service listens for SIGTERM, and all processes agree on the step.
    """

    def __init__(self):
        self.received: int | None = None
        self._previous = {}
        self._asked = 0

    def __enter__(self) -> "StopSignal":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
            print("stopping after this step; Ctrl-C once more stops at once", file=sys.stderr)

    def requested(self) -> bool:
        """Whether to stop now. All processes of a cluster ask at the same points and get the same answers."""
        self._asked += 1
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self._asked):
            self.received = signal.SIGTERM
        return self.received is not None
