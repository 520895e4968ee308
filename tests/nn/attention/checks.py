"""Holds a module against a function in NumPy that says what it computes, in float64: values and gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Arrays = dict[str, np.ndarray]
ByHand = Callable[[Arrays, np.ndarray], np.ndarray]
"""(the module's arrays by path: 'fc1.kernel'; activation) -> activation."""
STEP = 1e-5
"""Of the central differences: their error is about STEP^2 times the third derivative, and 1e-16 / STEP."""


def check(
    module: nnx.Module,
    by_hand: ByHand,
    shape: tuple[int, ...],
    *,
    train: bool = False,
    idle: tuple[str, ...] = (),
    seed: int = 0,
) -> None:
    """Refuses a module whose output, or whose gradients, are not those of `by_hand`.

    Call it inside `jax.enable_x64(True)`, with a module whose parameters are float64. All parameters and running
    statistics get random values first, so that no initial value hides a mistake.

    Args:
      shape: of the activation.
      train: in training mode, where batch norm takes the batch's own statistics.
      idle: arrays without any effect, such as a bias before a batch norm: their gradients must be zero.
    """
    rng = np.random.default_rng(seed)
    (module.train if train else module.eval)()
    randomise(module, rng)
    arrays, x = arrays_of(module), rng.normal(size=shape)
    expected = by_hand(arrays, x)
    weights = rng.normal(size=expected.shape)
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    @jax.jit
    def run(params: nnx.State, x: jax.Array):
        def loss(params, x):
            y = nnx.merge(graphdef, params, rest, copy=True)(x)
            return (y * weights).sum(), y

        (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        return y, gradients

    y, (dparams, dx) = run(params, jnp.asarray(x))
    assert y.dtype == jnp.float64
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12 * np.abs(expected).max())

    gradients = {**{name: np.asarray(value) for name, value in flat(dparams).items()}, "": np.asarray(dx)}
    inputs = {**{name: arrays[name] for name in gradients if name}, "": x}
    for name, value in inputs.items():  # one array after the other, along a random direction
        v = rng.normal(size=value.shape)

        def moved(step: float, name: str = name, value: np.ndarray = value, v: np.ndarray = v) -> float:
            there = inputs | {name: value + step * v}
            return float((by_hand(arrays | {k: a for k, a in there.items() if k}, there[""]) * weights).sum())

        slope = (moved(STEP) - moved(-STEP)) / (2 * STEP)
        scale = np.linalg.norm(gradients[name]) * np.linalg.norm(v)
        if name in idle:
            assert max(scale, abs(slope)) < 1e-6, f"{name}: is to have no effect, has a gradient of {scale}"
            continue
        assert scale > 1e-3, f"{name or 'x'}: a gradient of {scale} says nothing"
        difference = abs(slope - (gradients[name] * v).sum())
        assert difference <= 1e-6 * scale, f"{name or 'x'}: differs by {difference} of {scale}"


def randomise(module: nnx.Module, rng: np.random.Generator) -> None:
    """Random parameters, and random running statistics, whose variances are positive."""
    for _, variable in nnx.iter_graph(module):
        if isinstance(variable, nnx.BatchStat):
            variable.set_value(jnp.asarray(rng.uniform(0.3, 1.5, variable.shape)))
        elif isinstance(variable, nnx.Param):
            variable.set_value(jnp.asarray(rng.normal(size=variable.shape)))


def arrays_of(module: nnx.Module) -> Arrays:
    """Parameters and running statistics by path."""
    return {name: np.asarray(value) for name, value in flat(nnx.state(module, (nnx.Param, nnx.BatchStat))).items()}


def flat(state: nnx.State) -> dict[str, jax.Array]:
    """A state's arrays by path: 'fc1.kernel'."""
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # of exp(-x) for a large -x, where the quotient is 0
        return 1 / (1 + np.exp(-x))


def normed(arrays: Arrays, name: str, x: np.ndarray, *, train: bool, epsilon: float = 1e-5) -> np.ndarray:
    """The batch norm `name` of x (..., c): over all axes but the last."""
    axes = tuple(range(x.ndim - 1))
    mean, var = (x.mean(axes), x.var(axes)) if train else (arrays[f"{name}.mean"], arrays[f"{name}.var"])
    return (x - mean) / np.sqrt(var + epsilon) * arrays[f"{name}.scale"] + arrays[f"{name}.bias"]
