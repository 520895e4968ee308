"""Functions with a backward pass of their own, differentiated in every other way, in float64 on the CPU."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eca_jax.nn.conv import convolve
from eca_jax.nn.pool import max_pool
from eca_jax.nn.tail import affine_relu


def convolution(groups: int):
    return functools.partial(convolve, strides=(2, 2), padding=((0, 0), (0, 0)), feature_group_count=groups)


X, CHANNEL = (2, 5, 6, 4), (2, 1, 1, 4)
FUNCTIONS = {
    "widening": (convolution(1), X, (1, 1, 4, 7)),
    "narrowing": (convolution(1), X, (1, 1, 4, 2)),
    "depthwise": (convolution(4), X, (3, 3, 1, 4)),
    "max_pool": (max_pool, X),
    "affine_relu": (lambda x, a, b: affine_relu(x, a, b, None, jnp.float64), X, CHANNEL, CHANNEL),
    "affine_relu_shortcut": (lambda x, a, b, r: affine_relu(x, a, b, r, jnp.float64), X, CHANNEL, CHANNEL, X),
}
each_function = pytest.mark.parametrize("name", FUNCTIONS)


def drawn(rng: np.random.Generator, *shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Whole numbers of few values, so that windows have several maxima, and ReLU zeros."""
    return tuple(jnp.asarray(rng.integers(-3, 4, shape), jnp.float64) for shape in shapes)


@each_function
@jax.enable_x64(True)
def test_forward_and_reverse_mode_are_each_other_s_transpose(rng, name):
    """<J v, w> = <v, J' w>: of whole numbers, to the last bit."""
    function, *shapes = FUNCTIONS[name]
    args, v = drawn(rng, *shapes), drawn(rng, *shapes)
    y, jv = jax.jit(lambda args, v: jax.jvp(function, args, v))(args, v)
    (w,) = drawn(rng, y.shape)
    back = jax.jit(lambda args, w: jax.vjp(function, *args)[1](w))(args, w)
    assert jnp.vdot(jv, w) == sum(map(jnp.vdot, back, v)) != 0
    np.testing.assert_array_equal(jax.linearize(function, *args)[1](*v), jv)


def square(name):
    return lambda *args: jnp.square(FUNCTIONS[name][0](*args)).sum()


@each_function
@jax.enable_x64(True)
def test_second_derivatives(rng, name):
    """Forward over reverse, reverse over reverse and reverse over forward are one number."""
    args, v, w = (drawn(rng, *FUNCTIONS[name][1:]) for _ in range(3))
    gradient = jax.grad(square(name), tuple(range(len(args))))

    def slope(args):
        return sum(map(jnp.vdot, gradient(*args), v))

    def forward_slope(args):
        return jax.jvp(square(name), args, v)[1]

    @jax.jit
    def compared(args):
        forward_over_reverse = sum(map(jnp.vdot, jax.jvp(gradient, args, w)[1], v))
        both = (sum(map(jnp.vdot, jax.grad(f)(args), w)) for f in (slope, forward_slope))
        return forward_over_reverse, *both

    a, b, c = compared(args)
    assert a == b == c != 0


@each_function
@jax.enable_x64(True)
def test_vmap_of_derivatives(rng, name):
    """Over every choice of arguments that have the axis: gradients and tangents are those of the rows, one by one."""
    several = [drawn(rng, *((3, *shape) for shape in FUNCTIONS[name][1:])) for _ in range(2)]
    one = [tuple(x[0] for x in arrays) for arrays in several]

    def both(args, v):
        return jax.grad(square(name), tuple(range(len(args))))(*args), jax.jvp(square(name), args, v)[1]

    single = jax.jit(both)
    for mapped in itertools.product((0, None), repeat=len(one[0])):
        if set(mapped) == {None}:
            continue
        args, v = (
            tuple(many if axis == 0 else x for many, x, axis in zip(m, o, mapped, strict=True))
            for m, o in zip(several, one, strict=True)
        )
        got = jax.jit(jax.vmap(both, in_axes=(mapped, mapped)))(args, v)
        for i in range(3):
            rows = (tuple(x if axis is None else x[i] for x, axis in zip(t, mapped, strict=True)) for t in (args, v))
            jax.tree.map(lambda g, want, i=i: np.testing.assert_array_equal(g[i], want), got, single(*rows))


@jax.enable_x64(True)
def test_the_gradient_of_a_mean_over_vmap_sums_over_it(rng):
    """The kernel has no axis of its own there: its gradient is the sum of the rows'."""
    xs, kernels = drawn(rng, (3, *X), (1, 1, 4, 2))
    loss = square("narrowing")
    got = jax.grad(lambda kernel: jax.vmap(loss, (0, None))(xs, kernel).sum())(kernels)
    np.testing.assert_array_equal(got, sum(jax.grad(loss, 1)(x, kernels) for x in xs))
