"""A configuration with fields set anew from the command line (`--optim.lr 0.4`); typed, with an answer to a typo.

Which fields there are depends on the configuration: those of its task stand beside the others, and the options of its
attention are those of the attention's kind.
"""

import contextlib
import dataclasses
import io
import itertools
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, cast

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from eca_jax.config import MOVED_TO_TASK, Config, as_computed, flatten, load_config
from eca_jax.errors import EcaJaxError, unknown_option
from eca_jax.models.registry import model_row
from eca_jax.nn.attention import AttentionConfig, attention_row

OLD_NAMES = {f"--optim.{old}".replace("_", "-"): f"--{new}".replace("_", "-") for old, new in MOVED_TO_TASK.items()}
"""Options that version 0.1.0 had -> what they are called now; old commands keep working."""


def overridden(path: str, args: Sequence[str], *, prog: str, description: str, others: Iterable[str] = ()) -> Config:
    """The configuration in a file, with fields set anew.

    Args:
      path: of the file, or a name, as `load_config` takes it.
      args: of the command line.
      prog, description: for --help, which ends the process with the exit status 0.
      others: options that the command has beside the fields, for the answer to a typo.

    Raises:
      EcaJaxError: an unknown option (the nearest are named), a value of another type, or one that cannot work.
    """
    config, args = load_config(path), [_today(arg) for arg in args]
    model = config.model
    name = _value("--model.name", args) or model.name
    kind = _value("--model.attention.kind", args) or model.attention.kind
    own = model_row(name)[1]
    kind = own.kind if kind in (None, "None") else kind
    implied = own.given if kind == own.kind else {}
    registry = ConstructorRegistry()
    registry.struct_rule(lambda info: _attention_fields(info, kind or "none", implied))
    box = io.StringIO()
    try:
        with registry, contextlib.redirect_stderr(box), _wide_enough():
            found, unknown = tyro.cli(
                Config, prog=prog, description=description, default=config, args=args, return_unknown_args=True
            )
    except SystemExit as exit_:
        if not exit_.code:  # --help
            raise
        raise _refused(exit_, box.getvalue(), args) from None
    if unknown:
        raise EcaJaxError(unknown_option(args, unknown, [*_options(found), *others]))
    return found


@contextlib.contextmanager
def _wide_enough() -> Iterator[None]:
    """In a terminal of hardly any width, or one that says nonsense of it, tyro would lay out its help for minutes."""
    given, width = os.environ.get("COLUMNS"), shutil.get_terminal_size().columns
    os.environ["COLUMNS"] = str(max(width, MIN_COLUMNS))
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if given is not None:
            os.environ["COLUMNS"] = given


MIN_COLUMNS = 40


def _options(config: Config) -> list[str]:
    """Every option that sets a field of this configuration."""
    fields = {name.removeprefix("task."): value for name, value in flatten(as_computed(config)).items()}
    names = [name for name in fields if name != "name"]  # the task's, which no option sets
    names += [".no-".join(name.rsplit(".", 1)) for name in names if isinstance(fields[name], bool)]
    return [f"--{name.replace('_', '-')}" for name in names]


def _refused(exit_: SystemExit, box: str, args: Sequence[str]) -> EcaJaxError:
    """What tyro's exit says: the error of ours that led to it, or the box that it drew, as one line.

    A box has a title, a rule, and the argument's help: ─ Value error ─ Error parsing --epochs: ... ─ --epochs INT.
    """
    cause: BaseException | None = exit_
    while (cause := cause and cause.__context__) is not None:
        if isinstance(cause, EcaJaxError):
            return cause
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()]
    option = next(iter(re.findall(r"(?:Error parsing |argument ')(--[\w.-]+)", box)), None)
    if option is None:
        return EcaJaxError(" ".join(filter(None, lines)))
    several = re.search(r"Expected ([2-9] values)", " ".join(lines))
    usual = several[1] if several else "a value"
    form = next((line.removeprefix(option).strip() for line in lines if line.startswith(f"{option} ")), usual)
    given = _values(option, args)
    return EcaJaxError(f"{option}: expected {FORMS.get(form, form)}, got {' '.join(map(repr, given)) or 'none'}")


FORMS = {"INT": "a whole number", "FLOAT": "a number", "[INT [INT ...]]": "whole numbers"}
FORMS |= {"FLOAT FLOAT": "two numbers", "FLOAT FLOAT FLOAT": "three numbers", "[FLOAT [FLOAT ...]]": "numbers"}
FORMS |= {f"{{None}}|{form}": f"{meaning} or None" for form, meaning in FORMS.items()}
"""What tyro calls the form of a value -> in words; others stay as they are ([STR FLOAT [STR FLOAT ...]])."""


def _attention_fields(info: StructTypeInfo, kind: str, implied: Mapping[str, Any]) -> StructConstructorSpec | None:
    """How tyro sees an `AttentionConfig`: the kind, and beside it the fields of the kind's options.

    `implied` are the options that the model's name says. One that keeps what the name says stays unsaid.
    """
    if info.type is not AttentionConfig:
        return None
    default = info.default if isinstance(info.default, AttentionConfig) else AttentionConfig()
    row = attention_row(kind)
    own = {field.name for field in dataclasses.fields(row.options)}
    given = {name: value for name, value in default.given.items() if name in own}

    def instantiate(kind: str | None, options: Any) -> AttentionConfig:
        values, usual = dataclasses.asdict(options), dataclasses.asdict(row.options(**implied))
        said = {name: value for name, value in values.items() if name in given or value != usual[name]}
        return AttentionConfig(kind, **said)

    about = f"None is what the model's name says. The options beside it are those of {kind!r}."
    fields = (
        StructFieldSpec("kind", cast(Any, str | None), default.kind, helptext=about),
        StructFieldSpec(
            "options", cast(Any, Annotated[row.options, tyro.conf.arg(name="")]), row.options(**{**implied, **given})
        ),
    )
    return StructConstructorSpec(instantiate=instantiate, fields=fields)


def _today(arg: str) -> str:
    """An option under its name of today, with hyphens."""
    name, equals, value = arg.partition("=")
    if not name.startswith("--"):
        return arg
    name = name.replace("_", "-")
    return OLD_NAMES.get(name, name) + equals + value


def _values(option: str, args: Sequence[str]) -> list[str]:
    """What the command line says of an option, the last time that it does."""
    found = []
    for i, arg in enumerate(args, 1):
        if arg == option:
            found = list(itertools.takewhile(lambda value: not value.startswith("--"), args[i:]))
        elif arg.startswith(option + "="):
            found = [arg.partition("=")[2]]
    return found


def _value(option: str, args: Sequence[str]) -> str | None:
    """The first of `_values`."""
    return next(iter(_values(option, args)), None)
