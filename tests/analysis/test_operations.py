"""What is counted of a jaxpr, against formulas."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from eca_jax.analysis.operations import operations
from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention.base import weighted_sum
from eca_jax.nn.attention.eca import slide

LAYOUT = ("NHWC", "HWIO", "NHWC")


def counted(function, *shapes):
    """[(multiply-adds, outputs)] of every operation."""
    jaxpr = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).jaxpr
    return [(operation.multiply_adds, operation.outputs) for operation in operations(jaxpr)]


def conv(strides=(1, 1), **options):
    return lambda x, kernel: lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=LAYOUT, **options)


def test_convolutions():
    outputs = 2 * 4 * 5 * 12  # stride 2 on 8 x 10 pixels
    assert counted(conv((2, 2)), (2, 8, 10, 6), (3, 3, 6, 12)) == [(outputs * 3 * 3 * 6, outputs)]
    assert counted(conv((2, 2), feature_group_count=3), (2, 8, 10, 6), (3, 3, 2, 12)) == [
        (outputs * 3 * 3 * 2, outputs)
    ]
    assert counted(conv(rhs_dilation=(2, 2)), (1, 8, 8, 6), (3, 3, 6, 12)) == [(8 * 8 * 12 * 54, 8 * 8 * 12)]


def test_a_transposed_convolution_meets_no_zeros():
    def spread(x, kernel):
        return lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=LAYOUT)

    # every one of the 4 x 4 pixels is multiplied by every weight, and the result has 8 x 8
    assert counted(spread, (1, 4, 4, 6), (2, 2, 6, 12)) == [(4 * 4 * 2 * 2 * 6 * 12, 8 * 8 * 12)]


def test_matrix_products():
    assert counted(jnp.matmul, (2, 7, 5), (5, 3)) == [(2 * 7 * 5 * 3, 2 * 7 * 3)]
    assert counted(lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k), (2, 9, 4, 8), (2, 9, 4, 8)) == [
        (2 * 4 * 9 * 9 * 8, 2 * 4 * 9 * 9)
    ]
    assert counted(lambda x: jnp.tanh(x * x + 1).mean((1, 2)), (2, 4, 4, 3)) == []


@pytest.mark.parametrize("circular", [False, True])
def test_shifted_multiplications_are_a_convolution(circular):
    correlate = functools.partial(slide, circular=circular)
    assert sum_of(counted(correlate, (2, 16), (3,))) == (2 * 16 * 3, 2 * 16)
    assert sum_of(counted(lambda s, kernel: correlate(s, kernel) * 2 + s, (2, 16), (5, 16))) == (2 * 16 * 5, 2 * 16)


def test_sums_of_products_are_matrix_products():
    context = lambda x, weights: weighted_sum(x, weights, (1, 2))  # noqa: E731
    assert sum_of(counted(context, (2, 4, 5, 8), (2, 4, 5, 1))) == (2 * 20 * 8, 2 * 8)


def sum_of(found):
    return tuple(map(sum, zip(*found, strict=True)))


def test_inner_functions():
    product, shapes = (4 * 4 * 4, 4 * 4), ((4, 4), (4, 4))
    assert counted(lambda x, y: jax.jit(jnp.matmul)(x, y) + jax.checkpoint(jnp.matmul)(x, y), *shapes) == [product] * 2
    assert counted(lambda x, y: lax.scan(lambda x, _: (x @ y, None), x, length=5)[0], *shapes) == [(5 * 64, 5 * 16)]
    assert counted(lambda x, y: lax.cond(x[0, 0] > 0, lambda: x @ y @ x, lambda: x @ y), *shapes) == [product] * 2
    by_platform = lambda x, y: lax.platform_dependent(x, y, cpu=lambda x, y: x, default=jnp.matmul)  # noqa: E731
    assert counted(by_platform, *shapes) == [product]


def test_products_of_weights_alone_are_left_out():
    def function(x, w):
        w = jax.jit(jnp.matmul)(w, w)
        return lax.scan(lambda x, _: (x @ w, None), x, length=2)[0]

    shapes = (jax.ShapeDtypeStruct((4, 4), jnp.float32),) * 2
    jaxpr = jax.make_jaxpr(function)(*shapes).jaxpr
    assert [operation.multiply_adds for operation in operations(jaxpr, [True, False])] == [2 * 64]
    assert [operation.multiply_adds for operation in operations(jaxpr)] == [64, 2 * 64]


def test_a_loop_of_unknown_length_is_refused():
    def loop(x, y):
        return lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ y, x)

    with pytest.raises(
        EcaJaxError, match=r"^complexity: the network computes products in a while loop, .* it as jax.lax.scan"
    ):
        counted(loop, (4, 4), (4, 4))
    assert counted(lambda x: lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x - 1, x), (4, 4)) == []
