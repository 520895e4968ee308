"""Converts values to plain dicts, lists and numbers, for JSON, and back; and dataclasses that check their types.

A dataclass is converted by its fields; a class with `to_dict` and `from_dict` by these methods.
"""

import dataclasses
import functools
import os
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import msgspec
import numpy as np

from eca_jax.errors import EcaJaxError

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Converts to dicts, lists, strings, numbers, booleans and None; also NumPy's scalars and paths."""
    return msgspec.to_builtins(value, enc_hook=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "to_dict"):
        return value.to_dict()
    raise TypeError(f"a {type(value).__name__} is neither plain nor has it `to_dict`")


def from_plain(values: Any, cls: type[T], what: str) -> T:
    """The inverse of `to_plain`; `what` names the values in an error.

    Raises:
      EcaJaxError: names the field that has the wrong type or value.
    """
    try:
        return _converted(values, cls)
    except msgspec.ValidationError as error:
        raise EcaJaxError(f"{what}: {error}") from error


def _converted(values: Any, hint: Any) -> Any:
    return msgspec.convert(values, hint, dec_hook=lambda inner, plain: inner.from_dict(plain))


class TypedFields:
    """Base of the configuration's dataclasses: they refuse values of wrong types when they are made.

    The types are checked before the class's own `__post_init__`, also in a subclass from a plugin. A value that JSON
    would give back is accepted: a whole number for a float, a list for a tuple. NumPy's scalars and paths become plain
    numbers and strings. `at` is the prefix of the fields on the command line: `class OptimConfig(TypedFields,
    at="optim")` has `--optim.lr`.
    """

    _at: ClassVar[str] = ""

    def __init_subclass__(cls, at: str | None = None, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if at is not None:
            cls._at = f"{at}."
        own = vars(cls).get("__post_init__")
        if own is not None:
            cls.__post_init__ = _after_types(own)

    def __post_init__(self):
        check_types(self, self._at)


def _after_types(own: Any) -> Any:
    @functools.wraps(own)
    def post_init(self: TypedFields, *args: Any) -> None:
        check_types(self, self._at)
        own(self, *args)

    return post_init


def check_types(instance: Any, prefix: str) -> None:
    """Converts the fields of a dataclass's instance, frozen or not, to their types; `prefix` is such as 'optim.'.

    Raises:
      EcaJaxError: names the field that has the wrong type.
    """
    for name, hint in field_types(type(instance)).items():
        # Always: the default of a field that was not stored msgspec leaves to the class, where `to_plain` finds none.
        object.__setattr__(instance, name, of_type(f"{prefix}{name}", getattr(instance, name), hint))


@functools.cache
def field_types(cls: type) -> Mapping[str, Any]:
    """The types of a dataclass's fields, by name."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def of_type(name: str, value: Any, hint: Any) -> Any:
    """The value converted to the type `hint`, a class or an annotation such as `tuple[int, ...] | None`.

    Raises:
      EcaJaxError: 'optim.lr: expected a number, got '0.1''; an error of a class's `from_dict` is passed on unchanged.
    """
    if type(value) is hint:
        return value
    try:
        if not dataclasses.is_dataclass(hint):
            return _converted(to_plain(value), hint)
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
    except (msgspec.ValidationError, TypeError) as error:
        if isinstance(error.__cause__, EcaJaxError):
            raise error.__cause__ from None
    shown = " ".join(reprlib.repr(value).split())
    raise EcaJaxError(f"{name}: expected {in_words(hint)}, got {shown}")


WORDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False", types.NoneType: "None"}


def in_words(hint: Any) -> str:
    """Describes the values of a type: `tuple[str, float | None]` -> '(text, a number or None)'."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(in_words, inner))
    if typing.get_origin(hint) is tuple:
        return f"({', '.join('...' if item is ... else in_words(item) for item in inner)})"
    return WORDS.get(hint) or (hint.__name__ if isinstance(hint, type) else str(hint))
