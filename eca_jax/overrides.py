"""A configuration with fields set anew from the command line (`--optim.lr 0.4`); typed, with an answer to a typo.

Which fields there are depends on the configuration: those of its task stand beside the others, and the options of its
attention are those of the attention's kind.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from eca_jax.config import MOVED_TO_TASK, Config, load_config
from eca_jax.models.registry import model_row
from eca_jax.nn.attention import AttentionConfig, attention_row

OLD_NAMES = {f"--optim.{old}".replace("_", "-"): f"--{new}".replace("_", "-") for old, new in MOVED_TO_TASK.items()}
"""Options that version 0.1.0 had -> what they are called now; old commands keep working."""


def overridden(path: str, args: Sequence[str], *, prog: str, description: str) -> Config:
    """The configuration in a file, with fields set anew.

    Args:
      path: of the file, as `load_config` takes it.
      args: of the command line.
      prog, description: for --help.

    Raises:
      EcaJaxError: a value that cannot work. (An unknown option, or a value of another type, ends the process with the
        exit status 2, and --help with 0: tyro's way.)
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
    with registry:
        return tyro.cli(Config, prog=prog, description=description, default=config, args=args)


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
    """An option under its name of today."""
    name, equals, value = arg.partition("=")
    return OLD_NAMES.get(name.replace("_", "-"), name) + equals + value


def _value(option: str, args: Sequence[str]) -> str | None:
    """What the command line says of an option, the last time that it does."""
    found = None
    for i, arg in enumerate(args):
        if arg == option and i + 1 < len(args):
            found = args[i + 1]
        elif arg.startswith(option + "="):
            found = arg.partition("=")[2]
    return found
