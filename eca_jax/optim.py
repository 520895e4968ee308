"""The learning rate as a function of the step, and the optimisers: chains of optax's transformations."""

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eca_jax.errors import EcaJaxError, expect_one_of, expect_positive, expect_share
from eca_jax.plain import TypedFields

SCHEDULES = ("step", "cosine", "exponential", "constant")
OPTIMIZERS = ("sgd", "adamw", "lars", "lamb")
Schedule = Callable[[Any], Any]
"""step (from 0) -> learning rate."""
TRUST_COEFFICIENT = 0.001
"""The trust coefficient of LARS."""
MAX_STEPS = 2**31 - 1
"""The limit on the steps of a run, which are counted in int32."""
MAX_DECAYS = 2**20
"""The limit on epochs with the schedule 'exponential': their ends are a constant in the compiled step (4 MB)."""


@dataclasses.dataclass(frozen=True)
class OptimConfig(TypedFields, at="optim"):
    """The default is the paper's SGD, without Nesterov; weight decay is added to the gradient of every parameter."""

    name: str = "sgd"
    """'sgd', 'adamw' (Loshchilov and Hutter 2019; epsilon 1e-8), 'lars' (You et al. 2017), or 'lamb' (You et al. 2020;
    epsilon 1e-6)."""
    lr: float = 0.1
    """Peak learning rate."""
    lr_batch_size: int | None = None
    """The batch size for which `lr` is given; with another batch_size, the rate is scaled in proportion. None: the rate
    is `lr` for any batch size."""
    lr_scales: tuple[tuple[str, float], ...] = ()
    """(shell pattern of a parameter's name, factor for its rate); the first match counts, without one the factor is 1.
    E.g. (("layer1.*", 0.0), ("fc.*", 1.0), ("*", 0.1)). Factor 0 freezes a parameter; a frozen batch norm keeps its
    running statistics."""
    momentum: float = 0.9
    """For sgd and lars."""
    betas: tuple[float, float] = (0.9, 0.999)
    """For adamw and lamb: the decay rates of the averages of the gradients and of their squares."""
    weight_decay: float = 1e-4
    decay_vectors: bool = True
    """Decay the parameters of norms and the biases too (and let lars and lamb adapt their rates), as the paper does."""
    clip_norm: float | None = None
    """Scale gradients down to this global norm."""
    accumulate: int = 1
    """Process a batch in so many parts and average their gradients: less memory, the same learning rate."""
    ema_decay: float | None = None
    """Evaluate an exponential moving average of the weights. Its decay is min(ema_decay, (1 + step) / (10 + step))."""
    max_skipped: int = 10
    """A step with a loss or gradient that is not finite changes no weight. More than so many of them end the run."""
    schedule: str = "step"
    """'step' (times drop_factor at drop_epochs), 'cosine' (to min_lr), 'exponential' (times decay_per_epoch), or
    'constant'."""
    drop_epochs: tuple[int, ...] = (30, 60, 90)
    drop_factor: float = 0.1
    decay_per_epoch: float = 0.98
    min_lr: float = 0.0
    """For the schedule 'cosine': the rate at its end, in the same unit as `lr` (PyTorch's eta_min, timm's min_lr).
    `lr_batch_size` and `lr_scales` scale it together with `lr`, so that the curve keeps its form."""
    warmup_epochs: float = 0.0
    """The rate grows linearly from 0 over so many epochs; if the run is shorter, over a tenth of its steps."""

    def __post_init__(self):
        expect_one_of("optim.name", self.name, OPTIMIZERS)
        expect_one_of("optim.schedule", self.schedule, SCHEDULES)
        expect_positive("optim.lr", self.lr)
        expect_positive("optim.accumulate", self.accumulate)
        for name in ("lr_batch_size", "clip_norm"):
            if getattr(self, name) is not None:
                expect_positive(f"optim.{name}", getattr(self, name))
        expect_share("optim.momentum", self.momentum)
        expect_share("optim.ema_decay", self.ema_decay or 0.0)
        for beta in self.betas:
            expect_share("optim.betas", beta)
        if not 0 <= self.min_lr <= self.lr:
            raise EcaJaxError(f"optim.min_lr: expected 0 <= min_lr <= optim.lr, which is {self.lr}, got {self.min_lr}")
        if self.min_lr and self.schedule != "cosine":
            raise EcaJaxError(f"optim.min_lr: is of optim.schedule cosine, which is {self.schedule}")
        for pattern, factor in self.lr_scales:
            if not 0 <= factor < math.inf:
                raise EcaJaxError(f"optim.lr_scales: expected a factor of 0 or more for {pattern!r}, got {factor}")
        for name in ("weight_decay", "warmup_epochs", "max_skipped"):
            if not 0 <= getattr(self, name) < math.inf:
                raise EcaJaxError(f"optim.{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("drop_factor", "decay_per_epoch"):
            if not 0 < getattr(self, name) <= 1:
                raise EcaJaxError(f"optim.{name}: expected 0 < {name} <= 1, got {getattr(self, name)}")
        if any(epoch < 1 for epoch in self.drop_epochs):
            raise EcaJaxError(f"optim.drop_epochs: expected epochs of at least 1, got {self.drop_epochs}")


def total_steps(epochs: int, num_examples: int, batch_size: int) -> int:
    """The number of whole batches in so many passes over the examples; a batch may span the end of an epoch.

    Raises:
      EcaJaxError: there are more than MAX_STEPS.
    """
    steps = epochs * num_examples // batch_size
    if steps > MAX_STEPS:
        raise EcaJaxError(
            f"epochs: {epochs} epochs of {num_examples} examples in batches of {batch_size} are {steps} steps, and a "
            f"run counts to {MAX_STEPS}: use at most {MAX_STEPS * batch_size // num_examples} epochs"
        )
    return steps


def epochs_ended(step: int, num_examples: int, batch_size: int) -> int:
    """How many epochs are over after `step` steps: epoch e ends with step e * num_examples // batch_size."""
    return ((step + 1) * batch_size - 1) // num_examples


def peak_rate(config: OptimConfig, batch_size: int) -> float:
    """`lr`, scaled in proportion to the batch size if `lr_batch_size` is given (Goyal et al. 2017)."""
    return config.lr * (batch_size / config.lr_batch_size if config.lr_batch_size else 1.0)


def warmup_steps(config: OptimConfig, *, num_examples: int, batch_size: int) -> int:
    """The number of steps over which the rate grows."""
    return round(config.warmup_epochs * num_examples / batch_size)


def fitting_warmup(config: OptimConfig, *, num_examples: int, batch_size: int, total_steps: int) -> OptimConfig:
    """The configuration; a warm-up that is longer than the run is shortened to a tenth of the run's steps.

    A warm-up that fits stays as it is, however long, because the user may want it. One that does not fit nearly always
    belongs to a longer run that is tried out with fewer epochs, and without shortening, such a trial would never reach
    its learning rate. Published procedures warm up over a tenth of their epochs or less.
    """
    if warmup_steps(config, num_examples=num_examples, batch_size=batch_size) <= total_steps:
        return config
    return dataclasses.replace(config, warmup_epochs=total_steps // 10 * batch_size / num_examples)


def learning_rate(config: OptimConfig, *, num_examples: int, batch_size: int, total_steps: int) -> Schedule:
    """step -> rate. Drops and decays count epochs from the start of the run, warm-up included.

    Raises:
      EcaJaxError: the warm-up is longer than the run (see `fitting_warmup`).
    """
    peak = peak_rate(config, batch_size)
    warmup = warmup_steps(config, num_examples=num_examples, batch_size=batch_size)
    if warmup > total_steps:
        raise EcaJaxError(
            f"optim.warmup_epochs: {config.warmup_epochs:g} epochs are {warmup} of the run's {total_steps} steps, so "
            "the rate would never reach its peak; use a shorter warm-up or more epochs"
        )

    def decay(factor: float, epochs: Iterable[int]) -> Schedule:
        """Times `factor` at the end of each of these epochs, as far as steps are counted."""
        ends = sorted(min(epoch * num_examples // batch_size, MAX_STEPS) for epoch in epochs)
        ends = np.asarray(ends, np.int32)
        return lambda step: peak * factor ** jnp.searchsorted(ends, step, side="right")

    def exponential() -> Schedule:
        epochs = total_steps * batch_size // num_examples + 1
        if epochs > MAX_DECAYS:
            raise EcaJaxError(f"optim.schedule: exponential is for at most {MAX_DECAYS} epochs, got {epochs}")
        return decay(config.decay_per_epoch, range(1, epochs + 1))

    cosine = optax.cosine_decay_schedule(peak, max(total_steps - warmup, 1), alpha=config.min_lr / config.lr)
    schedules: dict[str, Callable[[], Schedule]] = {
        "constant": lambda: lambda step: peak,
        "step": lambda: decay(config.drop_factor, config.drop_epochs),
        "exponential": exponential,
        "cosine": lambda: lambda step: cosine(jnp.maximum(step - warmup, 0)),
    }
    schedule = schedules[config.schedule]()
    return lambda step: jnp.asarray(schedule(step) * (jnp.minimum((step + 1) / warmup, 1.0) if warmup else 1.0))


def make_optimizer(config: OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Clipping, the optimiser, and the factors of `lr_scales`.

    sgd:   g += decay * p; v = momentum * v + g; p -= rate * v: PyTorch's.
    adamw: u = Adam's direction + decay * p; p -= rate * u: PyTorch's.
    lars:  g += decay * p; v = momentum * v + rate * coefficient * |p| / |g| * g; p -= v.
    lamb:  u = Adam's direction + decay * p; p -= rate * |p| / |u| * u: timm's, which clips to norm 1 by default.
    """

    def decayed(params) -> Any:
        return jax.tree.map(lambda p: config.decay_vectors or p.ndim > 1, params)

    decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    rate = optax.scale_by_learning_rate(schedule)

    def trust_ratio(coefficient: float) -> optax.GradientTransformation:
        return optax.masked(optax.scale_by_trust_ratio(trust_coefficient=coefficient), decayed)

    chains = {
        "sgd": (decay, optax.trace(config.momentum), rate),
        "adamw": (optax.scale_by_adam(*config.betas, eps=1e-8), decay, rate),
        "lars": (decay, trust_ratio(TRUST_COEFFICIENT), rate, optax.trace(config.momentum)),
        "lamb": (optax.scale_by_adam(*config.betas, eps=1e-6), decay, trust_ratio(1.0), rate),
    }
    clip = (optax.clip_by_global_norm(config.clip_norm),) if config.clip_norm is not None else ()
    scale = (_scale_by_factors(config),) if config.lr_scales else ()
    return optax.chain(*clip, *chains[config.name], *scale)


def _scale_by_factors(config: OptimConfig) -> optax.GradientTransformation:
    def update(updates, params=None):
        return jax.tree.map(lambda u, factor: u * factor, updates, rate_factors(config, updates))

    return optax.stateless(update)


def rate_factors(config: OptimConfig, params) -> Any:
    """A factor for every parameter, from `lr_scales` and the parameter's name ('layer1.0.conv1.kernel')."""
    unused = {pattern for pattern, _ in config.lr_scales}

    def factor(path, _) -> float:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        for pattern, value in config.lr_scales:
            if fnmatch.fnmatchcase(name, pattern):
                unused.discard(pattern)
                return value
        return 1.0

    factors = jax.tree_util.tree_map_with_path(factor, params)
    if unused:
        raise EcaJaxError(
            f"optim.lr_scales: no parameter is left for {', '.join(sorted(unused))}; names are such as "
            f"{jax.tree_util.keystr(jax.tree_util.tree_leaves_with_path(params)[0][0], simple=True, separator='.')}"
        )
    if not any(jax.tree.leaves(factors)):
        raise EcaJaxError(
            "optim.lr_scales: the factor of every parameter is 0, so that nothing would be trained; give some of them "
            "another, such as ('fc.*', 1.0) before ('*', 0.0)"
        )
    return factors
