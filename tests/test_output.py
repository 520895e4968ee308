"""Where the output goes away, training goes on and a command ends; a full stdout is not taken for a full workdir."""

import errno
import json
import os
import subprocess
import sys

import pytest

from eca_jax import cli
from eca_jax.runs.directory import stops_where_nothing_can_be_written
from tests.commands import ROOT, TINY, environment


def piped(command: str, *, stdout=None, stderr=subprocess.PIPE) -> tuple[int, str]:
    """Runs Python code whose stdout, or stderr, is a pipe that nobody reads; (exit status, stderr)."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; from eca_jax.cli import guarded; {command}"],
        cwd=ROOT,
        env=environment(),
        stdout=stdout or write,
        stderr=stderr or write,
        text=True,
        timeout=300,
    )
    os.close(write)
    return done.returncode, done.stderr


PRINT = "sys.exit(guarded(lambda: print('result') or 0, needs_output={}))"


@pytest.mark.parametrize(
    ("needed", "full", "expected"),
    [
        (True, False, (141, "")),
        (True, True, (2, "error: stdout: No space left on device\n")),
        (False, False, (0, "")),
        (False, True, (0, "warning: stdout: No space left on device; going on without it\n")),
    ],
)
def test_a_stdout_that_takes_nothing(needed, full, expected):
    with open("/dev/full", "w") as disk:
        assert piped(PRINT.format(needed), stdout=disk if full else None) == expected


def test_a_stderr_that_takes_nothing_costs_no_result(monkeypatch, capsys):
    def command() -> int:
        print("a note", file=sys.stderr)
        print("result")
        return 0

    monkeypatch.setattr(sys, "stderr", open("/dev/full", "w"))  # noqa: SIM115 (it is closed with the test)
    assert cli.guarded(command) == 0
    assert capsys.readouterr().out == "result\n"


@pytest.mark.parametrize(
    ("needed", "expected"),
    [
        (True, (2, "error: stdout: Bad file descriptor\n")),
        (False, (0, "warning: stdout: Bad file descriptor; going on without it\n")),
    ],
)
def test_a_process_that_is_started_without_stdout(monkeypatch, capsys, needed, expected):
    """`>&-`: Python then has None there."""
    monkeypatch.setattr(sys, "stdout", None)
    status = cli.guarded(lambda: print("result", flush=True) or int(sys.stdout.isatty()), needs_output=needed)
    monkeypatch.undo()
    assert (status, capsys.readouterr().err) == expected


def test_closed_descriptors_are_not_given_to_the_files_of_a_run(tmp_path):
    """What is printed by the libraries in C++ would be written into them."""
    script = "from eca_jax.cli import guarded; guarded(lambda: print(open('file', 'w').fileno() > 2) or 0)"
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "{script}" <&- 2>&-', sys.executable],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "True\n"


def test_every_name_can_be_printed_in_the_c_locale():
    command = "from eca_jax.cli import guarded; guarded(lambda: print('k\\u00e4se', '\\u732b', sys.argv[1]) or 0)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {command}", "größe.png"],
        cwd=ROOT,
        env=environment(LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING=""),
        capture_output=True,
        timeout=300,
    )
    assert (done.stdout.decode(), done.stderr.decode()) == ("käse 猫 größe.png\n", "")


def test_a_process_that_gets_no_more_threads(capsys):
    """`ulimit -v`, `ulimit -u`, a container's limit: in Python's words, wherever the next thread was wanted."""

    def command() -> int:
        raise RuntimeError("can't start new thread")

    assert cli.guarded(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: can't start new thread: the system gives this process no more memory, or no more ")
    assert error.count("\n") == 1
    with pytest.raises(RuntimeError, match=r"^another$"):
        cli.guarded(lambda: exec("raise RuntimeError('another')"))


def test_help_that_is_not_read_to_its_end():
    assert piped("from eca_jax.cli import main; sys.exit(main(['--help']))") == (141, "")


def test_a_full_stdout_is_not_blamed_on_the_workdir(tmp_path, monkeypatch, capsys):
    class Full:
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self) -> None: ...

        def fileno(self) -> int:
            return os.open(tmp_path, os.O_RDONLY)

    def command() -> int:
        with stops_where_nothing_can_be_written(tmp_path):
            sys.stdout.write("a log row\n")
        return 0

    monkeypatch.setattr(sys, "stdout", Full())
    assert cli.guarded(command, needs_output=False) == 0
    assert capsys.readouterr().err == "warning: stdout: No space left on device; going on without it\n"


@pytest.mark.system
def test_training_that_nobody_watches_any_more_goes_on(tmp_path, data_dir):
    """`train.py 2>&1 | head -1`."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "train.py", "--workdir", str(tmp_path), *TINY, "--epochs", "2", "--log-every", "1"],
        cwd=ROOT,
        env=environment(),
        stdout=write,
        stderr=write,
    )
    os.close(write)
    with os.fdopen(read) as lines:
        lines.readline()
    assert process.wait(300) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 11))
    assert (tmp_path / "checkpoints" / "10").is_dir()
