"""The convolutions and matrix products of a traced function, each with the scopes that it stands in."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.extend import core

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention.base import SUM_OF_PRODUCTS


@dataclasses.dataclass(frozen=True)
class Operation:
    """One convolution or matrix product."""

    scope: str
    """The names of `jax.named_scope` around it, 'outer/inner'."""
    multiply_adds: int
    outputs: int
    """The number of elements of its result."""


def operations(
    jaxpr: core.Jaxpr, moving: Sequence[bool] | None = None, *, scope: str = "", turns: int = 1
) -> Iterator[Operation]:
    """The convolutions and matrix products of a jaxpr, also those in the functions that it calls.

    Of what differs by platform, the form of those without one of their own is counted; of other branches, that with the
    most multiply-adds; the body of a scan as often as it runs.

    Args:
      moving: of every input, whether it counts: a product that depends on no such input is left out, as those of
        weights alone, which are the same for all images. None is True for all.
      scope: of the jaxpr itself.
      turns: how often it is run.

    Raises:
      EcaJaxError: there are such operations in a loop whose number of turns depends on values.
    """
    reached = {variable for i, variable in enumerate(jaxpr.invars) if moving is None or moving[i]}
    for eqn in jaxpr.eqns:
        inputs = [isinstance(atom, core.Var) and atom in reached for atom in eqn.invars]
        if not any(inputs):
            continue
        reached.update(eqn.outvars)
        here = f"{scope}/{eqn.source_info.name_stack}"
        if rule := WORK.get(eqn.primitive.name):
            yield Operation(here, turns * _size(eqn.outvars[0]) * rule(eqn), turns * _size(eqn.outvars[0]))
        elif SUM_OF_PRODUCTS in here and (signs := WRITTEN_OUT.get(eqn.primitive.name)):
            yield Operation(here, *(turns * n for n in signs(eqn)))
        else:
            yield from _called(eqn, inputs, here, turns)


def _called(eqn: Any, inputs: list[bool], scope: str, turns: int) -> list[Operation]:
    """The operations of the functions that an equation calls."""
    name = eqn.primitive.name
    turns *= eqn.params["length"] if name == "scan" else 1

    def of(body: core.Jaxpr) -> list[Operation]:
        # The inputs of a branch follow its condition; what goes round in a loop may come from any input.
        moving = None if name in ("scan", "while") else inputs[len(inputs) - len(body.invars) :]
        return list(operations(body, moving, scope=scope, turns=turns))

    bodies = [of(body) for body in _bodies(eqn.params.values())]
    if name == "cond":
        platforms = eqn.params.get("branches_platforms")
        if platforms and None in platforms:
            return bodies[platforms.index(None)]
        return max(bodies, key=lambda found: sum(operation.multiply_adds for operation in found))
    if name == "while" and any(bodies):
        raise EcaJaxError(
            "complexity: the network computes products in a while loop, and shapes do not tell how often it turns; "
            "write it as jax.lax.scan, or as jax.lax.fori_loop with a number of turns that is known"
        )
    return [operation for body in bodies for operation in body]


def _bodies(values: Any) -> Iterator[core.Jaxpr]:
    for value in values:
        if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
            yield value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
        elif isinstance(value, tuple | list):
            yield from _bodies(value)


def _size(atom: Any) -> int:
    return math.prod(atom.aval.shape)


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
WRITTEN_OUT: dict[str, Callable[[Any], tuple[int, int]]] = {
    "mul": lambda eqn: (_size(eqn.outvars[0]), _size(eqn.outvars[0])),
    "add": lambda eqn: (0, -_size(eqn.outvars[0])),
    "reduce_sum": lambda eqn: (0, _size(eqn.outvars[0]) - _size(eqn.invars[0])),
}
"""Operation in the scope of a sum of products -> what it adds to the multiply-adds and to the outputs: every product is
a multiply-add, and of the products those that are summed are no outputs."""
