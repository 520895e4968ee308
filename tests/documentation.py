"""The code blocks of the pages (README.md, CONTRIBUTING.md, docs/*.md), examples in docstrings, and how both are run.

A block of Python, `sh` or `console` (lines after a `$ `) is run, one of JSON or TOML is parsed, one of text is output.
HTML comments on the lines before a block say what the page does not show (MARKS):

    <!-- needs: a download -->              something that no test has (ABSENT), or a package that may be missing
                                            (PACKAGES). Without it commands are only parsed, and Python is only compiled
                                            and its imports of this package looked up.
    <!-- with: --epochs 1 -->               options that are added to `train` commands, which then take seconds
    <!-- setup: photographs, run -->        files that are there before the block runs (SETUPS)
    <!-- file: my_package/gates.py -->      the block is this file, not a program
    <!-- excerpt: eca_jax/plugins.py -->    the block shows lines of this file of the repository, in their order
    <!-- command: train -->                 .ci/run runs the block as it stands
"""

import ast
import contextlib
import dataclasses
import doctest
import importlib
import importlib.util
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Client, Listener
from types import ModuleType
from typing import Any

from eca_jax import cli
from tests.datasets import photographs

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))

MARKS = ("needs", "with", "setup", "file", "excerpt", "command")
ABSENT = {
    "a download",
    "a new environment",
    "an account",
    "a browser",
    "much time",
    "ImageNet",
    "a GPU",
    "a TPU pod",
    "several hosts",
    "Slurm",
}
"""What no test has: a block that needs it is never run."""
PACKAGES = {
    "PyTorch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "ONNX": "onnx",
    "ONNX Runtime": "onnxruntime",
    "TensorFlow": "tensorflow",
    "Hugging Face datasets": "datasets",
    "Weights & Biases": "wandb",
    "Matplotlib": "matplotlib",
}
"""What a block may need beside the dependencies of this package -> the module. Where that is installed, it runs."""
OUTPUT = ("", "text", "bibtex")
PROGRAMS = (
    "bash",
    "cat",
    "cp",
    "find",
    "grep",
    "head",
    "kill",
    "ls",
    "mkdir",
    "mv",
    "nohup",
    "rm",
    "sleep",
    "sort",
    "tail",
    "wc",
)
"""What the pages may call beside `eca-jax` and `python`."""


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    """Of its first line of text, from 1."""
    language: str
    text: str
    marks: dict[str, str]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def several(self, mark: str) -> list[str]:
        """The values of a mark that has several, with commas between."""
        return [value.strip() for value in self.marks.get(mark, "").split(",") if value.strip()]

    def missing(self) -> list[str]:
        """What it needs and is not here."""
        needs = self.several("needs") + (["what .ci/run does"] if "command" in self.marks else [])
        return [name for name in needs if name not in PACKAGES or importlib.util.find_spec(PACKAGES[name]) is None]

    def script(self) -> str:
        """What a shell is given: of a console, the lines after the prompt."""
        if self.language == "sh":
            return self.text
        return "".join(f"{command}\n" for command in re.findall(r"^\$ (.*(?:\\\n.*)*)", self.text, re.MULTILINE))


FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
MARK = re.compile(r"^ *<!-- (\w+): (.*?) -->$")


def blocks(page: str) -> list[Block]:
    """All of a page, from top to bottom."""
    text = (ROOT / page).read_text()
    found = []
    for fence in FENCE.finditer(text):
        before = text[: fence.start()].splitlines()
        marks = {}
        while before and (mark := MARK.match(before.pop())):
            marks[mark[1]] = mark[2]
        line = text.count("\n", 0, fence.start("text")) + 1
        found.append(Block(page, line, fence["language"].strip(), textwrap.dedent(fence["text"]), marks))
    return found


def dead_links(page: str) -> list[str]:
    """Links of a page to files and headings of the repository that are not there."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", (ROOT / page).read_text())):
        path, _, heading = link.partition("#")
        if "://" in link:
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (heading and heading not in _anchors(target)):
            found.append(link)
    return found


def _anchors(path: pathlib.Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def faults(block: Block) -> Iterator[str]:
    """What is wrong with a block before it is run."""
    for mark in block.marks.keys() - set(MARKS):
        yield f"unknown mark {mark!r}: expected one of {', '.join(MARKS)}"
    for mark, known in (("needs", ABSENT | PACKAGES.keys()), ("setup", SETUPS.keys())):
        for name in set(block.several(mark)) - known:
            yield f"{mark}: unknown {name!r}: expected one of {', '.join(sorted(known))}"
    if block.language in OUTPUT:
        for line in block.text.splitlines():
            if re.match(r"(\$ |eca-jax \w|(\S*/)?python3? |pip )", line):
                yield f"a command in a block of output; make it `sh` or `console`: {line}"
    elif block.language not in RUN:
        yield f"unknown language {block.language!r}: expected one of {', '.join(filter(None, (*RUN, *OUTPUT)))}"
    elif "excerpt" in block.marks:
        yield from _strange_lines(block)
    elif block.language == "python":
        try:
            _compiled(block)
        except SyntaxError as error:
            yield str(error)


def _strange_lines(block: Block) -> Iterator[str]:
    """Lines that the file of which it shows some has not got, or not in this order; `...` stands for any."""
    rest = (ROOT / block.marks["excerpt"]).read_text()
    rest = iter([line.strip() for line in rest.splitlines()])
    for line in filter(None, map(str.strip, block.text.splitlines())):
        if line != "..." and line not in rest:
            yield f"{block.marks['excerpt']} has no such line here: {line}"
            return


def _compiled(block: Block) -> Any:
    """With the page's own lines in tracebacks."""
    return compile("\n" * (block.line - 1) + block.text, str(ROOT / block.page), "exec")


@dataclasses.dataclass
class Page:
    """What the blocks of a page share: the working directory, and the names in Python."""

    directory: pathlib.Path
    kept: pathlib.Path
    """A directory that the pages of a session share: what setups need not make twice."""
    module: ModuleType

    def run(self, block: Block) -> list[str]:
        """Runs one, or looks at it where something that it needs is missing: that is returned.

        Raises:
          Exception: it failed.
        """
        for name in block.several("setup"):
            SETUPS[name](self)
        if block.language in OUTPUT or "excerpt" in block.marks:
            return []
        missing = block.missing()
        if "file" in block.marks and not missing:
            path = self.directory / block.marks["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        else:
            RUN[block.language](self, block, bool(missing))
        return missing


def _python(page: Page, block: Block, only_read: bool) -> None:
    code = _compiled(block)
    if not only_read:
        exec(code, vars(page.module))
        return
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "eca_jax":
            module = importlib.import_module(node.module or "")
            for name in node.names:
                assert hasattr(module, name.name), f"{block}: {node.module} has no {name.name}"


def _shell(page: Page, block: Block, only_read: bool) -> None:
    more = shlex.split(block.marks.get("with", ""))
    if only_read:
        for words in simple_commands(block.script()):
            for args in invocations(words):
                check_arguments(args)
    else:
        run_script(page.directory, block.script(), more)


RUN: dict[str, Callable[[Page, Block, bool], None]] = {
    "python": _python,
    "sh": _shell,
    "console": _shell,
    "toml": lambda page, block, only_read: tomllib.loads(block.text) and None,
    "json": lambda page, block, only_read: json.loads(block.text) and None,
}
"""Languages -> what to do with a block; the last argument: whether only to look at it."""


def simple_commands(script: str) -> list[list[str]]:
    """The words of each command of a shell script, without what a shell would put in place of variables."""
    lexer = shlex.shlex(
        re.sub(r"(?m)(^|\s)#.*$", "", script.replace("\\\n", " ")), posix=True, punctuation_chars="\n;&|<>"
    )
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    found, words, skip = [], [], False
    for token in [*lexer, "\n"]:
        if set(token) <= set("\n;&|<>"):
            skip = bool(set(token) & set("<>"))  # the file that follows
            if not skip:
                found, words = [*found, words], []
        elif not skip:
            words.append(token)
        else:
            skip = False
    return list(filter(None, found))


def invocations(words: Sequence[str]) -> Iterator[list[str]]:
    """The arguments of `eca-jax` in a command: its own, or those of a command in it (srun, a quoted script)."""
    for i, word in enumerate(words):
        name = os.path.basename(word)
        if name in ("eca-jax", "train.py") and "install" not in words[:i]:
            yield ["train"] * (name == "train.py") + list(words[i + 1 :])
            return
        if any(character.isspace() for character in word):
            for inner in simple_commands(word):
                yield from invocations(inner)


class _Read(Exception):
    """The arguments of `train` are as they should be."""


def check_arguments(args: Sequence[str]) -> None:
    """Parses the arguments of `eca-jax`, configuration and all, and does nothing with them.

    Raises:
      EcaJaxError: of an argument that the command would refuse.
    """
    from eca_jax import overrides, sharding

    def stop(_) -> None:
        raise _Read

    def read(parsed: Any) -> int:
        if cli.COMMANDS[parsed.command].fields:
            overrides.overridden(parsed.config, parsed.overrides, prog="eca-jax", description="", others=parsed.options)
        return cli.EXIT_OK

    before, commands = sharding.initialize_cluster, cli.COMMANDS
    sharding.initialize_cluster = stop
    cli.COMMANDS = {name: command._replace(run=read) for name, command in commands.items()}
    try:
        with contextlib.suppress(_Read, SystemExit), contextlib.chdir(ROOT):  # --help
            cli._train(args[1:], "train.py") if args[:1] == ["train"] else cli._command(args)
    finally:
        sharding.initialize_cluster, cli.COMMANDS = before, commands


# A real shell runs the scripts. `eca-jax` and `python` are there little programs that ask this process: it runs the
# commands of eca-jax itself, where JAX is imported and programs are compiled already.

SHIM = f"""#!{sys.executable} -IS
import os, sys
from multiprocessing.connection import Client
name, args = os.path.basename(sys.argv[0]), sys.argv[1:]
if name != "eca-jax" and args[:1] != ["train.py"]:
    os.execv({sys.executable!r}, [{sys.executable!r}, *args])
with Client(os.environ["ECA_JAX_PAGE"]) as asked:
    asked.send((os.getcwd(), args if name == "eca-jax" else ["train", *args[1:]]))
    status, out, err = asked.recv()
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""


def run_script(directory: pathlib.Path, script: str, more: Sequence[str]) -> None:
    """Runs a shell script, with options that are added to `train` commands.

    Raises:
      AssertionError: a command ended with another exit status than 0.
    """
    ended, statuses = [], {}
    with Listener() as listener:
        environment = {
            "PATH": str(_programs(directory)),
            "HOME": str(directory),
            "ECA_JAX_PAGE": str(listener.address),
            "PYTHONPATH": str(ROOT),
            "MPLBACKEND": "agg",
        }

        def shell() -> None:
            command = ["bash", "-euo", "pipefail", "-c", f"{script}\nwait"]
            try:
                ended.append(subprocess.run(command, cwd=directory, env={**os.environ, **environment}, timeout=600))
            finally:
                with Client(listener.address) as client:
                    client.send(None)

        thread = threading.Thread(target=shell)
        thread.start()
        while True:
            with listener.accept() as connection:
                if (request := connection.recv()) is None:
                    break
                place, args = request
                answer = run_command(place, [*args, *more] if args[:1] == ["train"] else args)
                statuses[" ".join(["eca-jax", *args])] = answer[0]
                connection.send(answer)
        thread.join()
    assert ended, "the shell did not end"
    assert ended[0].returncode == 0, f"the script ended with {ended[0].returncode}, its commands with {statuses}"
    assert not any(statuses.values()), statuses


def run_command(directory: str, args: Sequence[str]) -> tuple[int, str, str]:
    """`eca-jax ARGS` in this process: its exit status, what it wrote on stdout and on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(directory), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(args)
        except SystemExit as exit_:  # --help
            status = exit_.code or 0
    print(f"$ eca-jax {shlex.join(args)}", out.getvalue(), err.getvalue(), sep="\n")
    return int(status), out.getvalue(), err.getvalue()


def _programs(directory: pathlib.Path) -> pathlib.Path:
    """A directory of what scripts may call, which is made once a page; .venv/bin is the same."""
    programs = directory / ".venv" / "bin"
    if not programs.exists():
        programs.mkdir(parents=True)
        for name in ("eca-jax", "python", "python3"):
            (programs / name).write_text(SHIM)
            (programs / name).chmod(0o755)
        for name in PROGRAMS:
            (programs / name).symlink_to(shutil.which(name) or f"/bin/{name}")
        (directory / "configs").symlink_to(ROOT / "configs")
    return programs


# Examples in docstrings.

MODULES = tuple(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "eca_jax").rglob("*.py"))
    if ">>>" in path.read_text()
)
"""Those with examples."""


def run_examples(name: str) -> str:
    """Runs the examples in the docstrings of a module, and returns what is said of those that print something else.

    Each begins without any name, so that a reader can copy it as it stands; `...` in what it prints is anything.
    """
    runner, said = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), io.StringIO()
    for example in doctest.DocTestFinder().find(importlib.import_module(name), globs={}):
        runner.run(example, out=said.write)
    return said.getvalue()


# What a page may say is there.

SCENES = ("temple", "flower")
"""What scikit-learn's two photographs show."""
SMALL_RUN = "--model.width-multiplier 0.125 --data.train-split train[:640] --epochs 1 --optim.warmup-epochs 0.5"


def _photographs(page: Page) -> None:
    """photos/{train,val}/{temple,flower}/NUMBER.jpg."""
    for i, photograph in enumerate(photographs(48)):
        folder = page.directory / "photos" / ("val" if i >= 32 else "train") / SCENES[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        photograph.save(folder / f"{i}.jpg", quality=90)


def _photo(page: Page) -> None:
    """photo.jpg."""
    photographs(1)[0].save(page.directory / "photo.jpg", quality=90)


def _digit(page: Page) -> None:
    """digit.png: a handwritten 7."""
    from eca_jax.data.sources import open_source

    image = next(image for image, label in open_source("digits", "test") if label == 7)
    (page.directory / "digit.png").write_bytes(image)


def _run(page: Page) -> None:
    """runs/digits: what `eca-jax train` makes, of a small network and within seconds."""
    if not (page.kept / "runs" / "digits").exists():
        status, _, err = run_command(str(page.kept), ["train", *shlex.split(SMALL_RUN)])
        assert status == 0, err
    shutil.copytree(page.kept / "runs" / "digits", page.directory / "runs" / "digits")


SETUPS: dict[str, Callable[[Page], None]] = {
    "photographs": _photographs,
    "photo": _photo,
    "digit": _digit,
    "run": _run,
}
"""What a page finds in its directory, because an earlier page or the user made it."""
