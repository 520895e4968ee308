"""The convolutions and matrix products of a traced function, each with the scopes that it stands in."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from jax.extend import core

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention.eca import CHANNEL_CONV


@dataclasses.dataclass(frozen=True)
class Operation:
    """One convolution or matrix product."""

    scope: str
    """The names of `jax.named_scope` around it, 'outer/inner'."""
    multiply_adds: int
    outputs: int
    """The number of elements of its result."""


def operations(jaxpr: core.Jaxpr, scope: str = "", turns: int = 1) -> Iterator[Operation]:
    """The convolutions and matrix products of a jaxpr, also those in the functions that it calls.

    Of what differs by platform, the form of those without one of their own is counted; of other branches, that with the
    most multiply-adds; the body of a scan as often as it runs.

    Args:
      scope: of the jaxpr itself.
      turns: how often it is run.

    Raises:
      EcaJaxError: there are such operations in a loop whose number of turns depends on values.
    """
    for eqn in jaxpr.eqns:
        here = f"{scope}/{eqn.source_info.name_stack}"
        name, size = eqn.primitive.name, turns * math.prod(eqn.outvars[0].aval.shape if eqn.outvars else ())
        if name in WORK:
            yield Operation(here, size * WORK[name](eqn), size)
        elif name in SHIFTED and CHANNEL_CONV in here:
            yield Operation(here, *(size * sign for sign in SHIFTED[name]))
        elif name == "cond":
            yield from _branch(eqn, here, turns)
        else:
            times = turns * eqn.params["length"] if name == "scan" else turns
            inner = [found for body in _bodies(eqn.params.values()) for found in operations(body, here, times)]
            if name == "while" and inner:
                raise EcaJaxError(
                    "complexity: the network computes products in a while loop, and shapes do not tell how often it "
                    "turns; write it as jax.lax.scan, or as jax.lax.fori_loop with a number of turns that is known"
                )
            yield from inner


def _convolution(eqn: Any) -> int:
    """Multiply-adds of one output: the weights of an output channel; the zeros between spread-out pixels are none."""
    kernel, (c_out, *_) = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
    return math.prod(kernel) // kernel[c_out] // math.prod(eqn.params["lhs_dilation"])


def _product(eqn: Any) -> int:
    """Multiply-adds of one output: the length of the sum."""
    ((contracted, _), _) = eqn.params["dimension_numbers"]
    return math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)


WORK: dict[str, Callable[[Any], int]] = {"conv_general_dilated": _convolution, "dot_general": _product}
"""Operation -> the multiply-adds for each element of its result."""
SHIFTED = {"mul": (1, 1), "add": (0, -1)}
"""Of a convolution that is written as k shifted products and k - 1 additions: what each of their elements adds to its
multiply-adds and to its outputs."""


def _bodies(values: Any) -> Iterator[core.Jaxpr]:
    for value in values:
        if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
            yield value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
        elif isinstance(value, tuple | list):
            yield from _bodies(value)


def _branch(eqn: Any, scope: str, turns: int) -> list[Operation]:
    branches = [list(operations(body, scope, turns)) for body in _bodies(eqn.params["branches"])]
    platforms = eqn.params.get("branches_platforms")
    if platforms and None in platforms:
        return branches[platforms.index(None)]
    return max(branches, key=lambda found: sum(operation.multiply_adds for operation in found))
