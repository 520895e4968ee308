"""Functions with a hand-written backward pass that can also be differentiated in forward mode.

With `jax.custom_vjp` one writes the backward pass by hand, but forward mode is then refused. With `jax.custom_jvp` one
writes the tangent, and autodiff derives the backward pass from it. Here both are written by hand: `linear_map` is a
linear function that knows its own transpose. (`jax.custom_derivatives.linear_call` is one too, but `jax.vmap` cannot
map it.)
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Arrays = Sequence[jax.Array]
Linear = Callable[[Arrays, Arrays], Arrays]
"""(saved arrays, vectors) -> vectors: a function in plain JAX, linear in its second argument. All arrays are real."""


def differentiable(
    function: Callable[..., jax.Array],
    save: Callable[..., Arrays],
    tangent: Linear,
    gradients: Linear,
    *args: jax.Array,
) -> jax.Array:
    """`function(*args)` with hand-written derivatives.

    Args:
      function: maps arrays to one array.
      save: (output, *args) -> what the derivatives need.
      tangent: (saved, (tangent of every argument)) -> (tangent of the output,).
      gradients: its transpose: (saved, (gradient of the output,)) -> (gradient of every argument).
    """

    @jax.custom_jvp
    def call(*args):
        return function(*args)

    @call.defjvp
    def call_jvp(args, tangents):
        output = function(*args)
        (moved,) = linear_map(tangent, gradients, save(output, *args), tangents)
        return output, moved

    return call(*args)


def linear_map(there: Linear, back: Linear, saved: Arrays, vectors: Arrays) -> Arrays:
    """`there(saved, vectors)`, whose transpose is `back(saved, gradients of its results)`."""
    return linear_map_p.bind(*saved, *vectors, there=there, back=back, n=len(saved))


def _run(*args: jax.Array, there: Linear, back: Linear, n: int) -> list[jax.Array]:
    return list(there(args[:n], args[n:]))


def _shapes(*avals: Any, **params: Any) -> Sequence[Any]:
    return jax.make_jaxpr(lambda *args: _run(*args, **params))(*avals).out_avals


def _jvp(args, tangents, *, there: Linear, back: Linear, n: int):
    """The product rule: the derivative by the vectors is the map itself; autodiff makes the one by the saved arrays."""
    terms = []
    if not all(type(t) is ad.Zero for t in tangents[n:]):
        terms.append(linear_map(there, back, args[:n], [ad.instantiate_zeros(t) for t in tangents[n:]]))
    if not all(type(t) is ad.Zero for t in tangents[:n]):
        moved = tuple(ad.instantiate_zeros(t) for t in tangents[:n])
        terms.append(jax.jvp(lambda *saved: list(there(saved, args[n:])), tuple(args[:n]), moved)[1])
    return linear_map(there, back, args[:n], args[n:]), [
        functools.reduce(jnp.add, parts) for parts in zip(*terms, strict=True)
    ]


def _transpose(gradients, *args, there: Linear, back: Linear, n: int):
    gradients = [ad.instantiate_zeros(g) for g in gradients]
    found = linear_map(back, there, args[:n], gradients)
    wanted = [ad.is_undefined_primal(vector) for vector in args[n:]]
    return [None] * n + [g if w else None for g, w in zip(found, wanted, strict=True)]


def _batch(args, dims, *, there: Linear, back: Linear, n: int):
    """Maps over all vectors and results, so that the transpose fits, and over the saved arrays that have the axis."""
    (size,) = {x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None}
    saved = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args[:n], dims[:n], strict=True)]
    vectors = [batching.bdim_at_front(x, d, size) for x, d in zip(args[n:], dims[n:], strict=True)]
    axes = [None if d is None else 0 for d in dims[:n]]
    outputs = linear_map(_mapped(there, axes), _mapped(back, axes), saved, vectors)
    return outputs, [0] * len(outputs)


def _mapped(function: Linear, axes: Sequence[int | None]) -> Linear:
    return lambda saved, vectors: jax.vmap(
        lambda saved, vectors: list(function(saved, vectors)), in_axes=(list(axes), 0)
    )(list(saved), list(vectors))


linear_map_p = Primitive("linear_map")
linear_map_p.multiple_results = True
linear_map_p.def_impl(_run)
linear_map_p.def_abstract_eval(_shapes)
ad.primitive_jvps[linear_map_p] = _jvp
ad.primitive_transposes[linear_map_p] = _transpose
batching.primitive_batchers[linear_map_p] = _batch
mlir.register_lowering(linear_map_p, mlir.lower_fun(_run, multiple_results=True))
