"""Ctrl-C, SIGTERM and SIGHUP end a command with its status and one line, whatever it is doing, and lose nothing."""

import os
import pathlib
import runpy
import signal
import subprocess
import sys
import threading
import time

import pytest

from eca_jax import cli, interrupts
from eca_jax.training.signals import StopSignal
from tests.commands import ROOT, TINY, environment

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


class Left:
    """Takes the place of the end of the process."""

    def __init__(self):
        self.status, self.happened = None, threading.Event()

    def __call__(self, status: int) -> None:
        self.status = status
        self.happened.set()


@pytest.fixture
def left(monkeypatch, hang_up) -> Left:
    left = Left()
    monkeypatch.setattr(cli, "_leave", left)
    monkeypatch.setattr("eca_jax.training.signals.SECONDS_TO_END", 0.2)
    return left


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def run(command) -> None:
    """A command that its signal does not end by itself: a compilation."""
    cli.guarded(lambda: command() or 0)


def test_a_command_without_anything_to_save_leaves_at_once(left, capfd):
    def command() -> None:
        send(INT)
        assert left.happened.wait(60)

    before = signal.getsignal(INT)
    run(command)
    assert left.status == 130
    assert capfd.readouterr().err == "interrupted\n"
    assert signal.getsignal(INT) is before
    assert signal.set_wakeup_fd(-1) == -1, "the thread's ear is given back"


@pytest.mark.parametrize("number", [INT, TERM, HUP])
def test_before_the_first_step_any_signal_leaves_where_the_main_thread_does_not(left, capfd, number):
    def command() -> None:
        with StopSignal() as stop:
            send(number)
            assert left.happened.wait(60)
            assert stop.requested()

    run(command)
    assert left.status == 128 + number
    line = f"stopped by {signal.Signals(number).name} before its first step; the same command starts it again\n"
    assert capfd.readouterr().err == line


def test_in_training_the_first_names_what_it_waits_for_and_the_second_leaves(left, capfd):
    def command() -> None:
        with StopSignal() as stop:
            stop.waits_for = "this step"
            with stop.waiting_for("the compilation of this step"):
                for number in (TERM, HUP, HUP, INT):  # schedulers and shells may say it more than once
                    send(number)
                    assert not left.happened.wait(0.5), "there is something to save"
                send(INT)
                assert left.happened.wait(60)

    run(command)
    assert left.status == 130
    *first, last = capfd.readouterr().err.splitlines()
    expected = "stopping after the compilation of this step, and saving; Ctrl-C once more leaves at once"
    assert first == [expected] * 4
    assert last == "interrupted; the same command goes on from the newest checkpoint"


@pytest.mark.parametrize("patient", [True, False])
def test_the_second_waits_for_the_checkpoint_that_is_being_written_and_the_third_does_not(left, capfd, patient):
    saving = threading.Event()
    saving.set()

    def command() -> None:
        with StopSignal() as stop:
            stop.waits_for, stop.saving = "this step", saving.is_set
            send(INT)
            time.sleep(0.2)
            send(INT)
            assert not left.happened.wait(0.5)
            if patient:
                saving.clear()
            else:
                send(INT)
            assert left.happened.wait(60)

    run(command)
    assert left.status == 130
    _, waiting, leaving = capfd.readouterr().err.splitlines()
    assert waiting == "waiting for the checkpoint that is being written; Ctrl-C once more leaves without it"
    assert leaving == "interrupted; the same command goes on from the newest checkpoint"


def test_a_program_that_imports_the_library_keeps_its_signals():
    def user_s_own(*_) -> None: ...

    before = {number: signal.signal(number, user_s_own) for number in (INT, TERM, HUP)}
    try:
        with interrupts.listening(lambda number: lambda: "never") as in_command, StopSignal() as stop:
            assert not in_command
            assert signal.set_wakeup_fd(-1) == -1
            send(INT)
            assert stop.received == INT
            assert signal.getsignal(INT) is user_s_own, "who answers the second"
        assert [signal.getsignal(number) for number in before] == [user_s_own] * 3
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_hang_up_that_was_ignored_at_the_start_stays_ignored():
    before = signal.signal(HUP, signal.SIG_IGN)  # what nohup does
    try:
        with StopSignal() as stop:
            send(HUP)
            assert not stop.requested()
    finally:
        signal.signal(HUP, before)


def test_ctrl_c_in_the_first_moment_of_train_py(monkeypatch, capsys):
    class Interrupted:
        def find_spec(self, name, *_):
            if name == "eca_jax.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "eca_jax.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    assert exit.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


# Says when XLA begins to compile the training step, for which it needs some seconds.
COMPILING = """
import sys
import jax
from eca_jax.cli import train_main

compile = jax.stages.Lowered.compile
jax.stages.Lowered.compile = lambda *args, **kwargs: (print("compiling", flush=True), compile(*args, **kwargs))[1]
sys.exit(train_main(sys.argv[1:]))
"""


@pytest.mark.system
@pytest.mark.parametrize("numbers", [(INT, INT), (HUP,)], ids=["Ctrl-C twice", "a closed terminal"])
def test_a_signal_while_xla_compiles(tmp_path: pathlib.Path, numbers):
    """Without a compilation cache, with XLA's optimisations; before there was a segmentation fault."""
    args = ["--workdir", str(tmp_path), *TINY, "--model.name", "eca_resnet34"]
    env = environment(XLA_FLAGS="--xla_force_host_platform_device_count=1", JAX_ENABLE_COMPILATION_CACHE="false")
    with subprocess.Popen(
        [sys.executable, "-c", COMPILING, *args],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert any(line == "compiling\n" for line in process.stdout)
        time.sleep(1)  # into the compilation
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.3)
        out, err = process.communicate(timeout=300)
    print(out, err)
    assert process.returncode == 128 + numbers[-1]
    assert len(err.splitlines()) == 1
