"""Values to plain dicts, lists and numbers, for JSON, and back with their types.

Dataclasses by their fields; a class with `to_dict` and `from_dict` by those.
"""

from typing import Any, TypeVar

import msgspec

from eca_jax.errors import EcaJaxError

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Dicts, lists, strings, numbers, booleans and None."""
    return msgspec.to_builtins(value, enc_hook=lambda inner: inner.to_dict())


def from_plain(values: Any, cls: type[T], what: str) -> T:
    """The inverse of `to_plain`; `what` is the thing's name for the error.

    Raises:
      EcaJaxError: names the field that has the wrong type or value.
    """
    try:
        return msgspec.convert(values, cls, dec_hook=lambda inner, plain: inner.from_dict(plain))
    except msgspec.ValidationError as error:
        raise EcaJaxError(f"{what}: {error}") from error
