"""The values of a network's attention gates for given images, and what can be said of them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from eca_jax.analysis.table import Table
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Backbone
from eca_jax.nn.attention import ChannelGate

GateFunction = Callable[[jax.Array], dict[str, jax.Array]]
"""Normalised images (b, h, w, c) -> the gates of every block."""


def channel_gates(model: Backbone, images: jax.Array) -> dict[str, jax.Array]:
    """The gates of every block for every image.

    Args:
      model: a network whose attention computes one gate for each channel, in evaluation mode. Such are all
        `ChannelGate`s (ECA, SE, ESE, ...), and every other attention with a method `gates` that maps its input (b, ...,
        c) to the gates (b, c), as SRM and FCA have. CBAM's and other gates of single pixels are none of these.
      images: normalised, (b, h, w, 3).

    Returns:
      The block's name ('layer1.0', in the order of the network) -> its gates (b, c), float32. They are in (0, 1) where
      the attention ends with a sigmoid.

    Raises:
      EcaJaxError: the model does not come from `create_model`, or is in training mode, where the gates of an image
        depend on the whole batch, or its attention has no gate for each channel.
    """
    return gate_function(model)(images)


def gate_function(model: Backbone) -> GateFunction:
    """`channel_gates` of a model for many batches: a function that is compiled once for each shape of batch.

    Raises:
      EcaJaxError: as `channel_gates`.
    """
    if not isinstance(model, Backbone):
        raise EcaJaxError(f"model: expected a network of create_model, got {type(model).__name__}")
    modes = [(m, name) for _, m in nnx.iter_modules(model) for name in ("use_running_average", "deterministic")]
    if any(getattr(module, name, True) is False for module, name in modes):
        raise EcaJaxError("model: it is in training mode, where gates are of the whole batch: call model.eval() first")
    order = [".".join(map(str, path)) for path, module in nnx.iter_modules(model) if _recorder(module)]
    if not order:
        kind = model.architecture.attention.kind
        raise EcaJaxError(
            f"model: {model.architecture.name} has the attention {kind!r}, which computes no gate for each channel; "
            "expected a network with a channel gate, such as eca_resnet50 or se_resnet50"
        )
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: nnx.State, images: jax.Array) -> dict[str, jax.Array]:
        model = nnx.merge(graphdef, state)
        gates = {}
        blocks: list[tuple[Any, Any]] = list(nnx.iter_modules(model))
        for path, block in blocks:
            if recorder := _recorder(block):
                block.attn = recorder(block.attn, ".".join(map(str, path)), gates)
        model.features(images)
        return gates

    def in_order(images: jax.Array) -> dict[str, jax.Array]:
        gates = run(state, images)  # jit sorts the keys of a dict
        return {name: gates[name] for name in order}

    return in_order


def _recorder(block: Any) -> "type[_Recorder] | None":
    """What records the gates of a block's attention; None where there are none."""
    attn = getattr(block, "attn", None)
    if isinstance(attn, ChannelGate):
        return _GateRecorder
    return _ModuleRecorder if hasattr(attn, "gates") else None


class _Recorder(nnx.Module):
    """Takes the place of an attention, and records its gates."""

    def __init__(self, attn: Any, name: str, gates: dict[str, jax.Array]):
        self.attn = attn
        self.note = nnx.static(lambda gate: gates.__setitem__(name, gate))


class _GateRecorder(_Recorder, ChannelGate):
    """Of a `ChannelGate`."""

    def gate(self, s: jax.Array) -> jax.Array:
        gate = self.attn.gate(s)
        self.note(gate)
        return gate


class _ModuleRecorder(_Recorder):
    """Of an attention with a method `gates`."""

    def __call__(self, x: jax.Array) -> jax.Array:
        self.note(self.attn.gates(x))
        return self.attn(x)


HALF = 0.02
"""A gate nearer than this to 0.5 counts as one at 0.5."""
LOW, HIGH = 0.05, 0.95
"""A gate below the first counts as closed, one above the second as open."""
STUCK = 0.9
"""A block is called stuck at 0.5, closed, open or saturated where this share of its gates is."""
SAME = 0.01
"""A spread below this counts as none: gates then differ by about a hundredth of their range."""


@dataclasses.dataclass(frozen=True)
class GateStatistics:
    """What the gates (n, c) of one block are, for n images and c channels."""

    images: int
    channels: int
    mean: float
    low_percentile: float
    """The 1st percentile of all n * c gates."""
    lower_quartile: float
    median: float
    upper_quartile: float
    high_percentile: float
    """The 99th percentile."""
    near_half: float
    """The share of gates within `HALF` of 0.5."""
    near_zero: float
    """The share below `LOW`."""
    near_one: float
    """The share above `HIGH`."""
    over_images: float
    """The spread over images: the variance of each channel's gate over the images, averaged over the channels; its
    root."""
    over_channels: float
    """The spread over channels: the variance of each image's gates over the channels, averaged over the images; its
    root."""

    @property
    def verdict(self) -> str:
        """In plain words, the first that applies; `THRESHOLDS` says when."""
        return next(words for words, applies in VERDICTS if applies(self))


VERDICTS: tuple[tuple[str, Callable[[GateStatistics], bool]], ...] = (
    ("stuck at 0.5: halves every channel of every image", lambda s: s.near_half >= STUCK),
    ("closed: lets almost nothing through", lambda s: s.near_zero >= STUCK),
    ("open: passes everything on, as without attention", lambda s: s.near_one >= STUCK),
    (
        "the same number for every channel of every image",
        lambda s: max(s.over_images, s.over_channels) < SAME,
    ),
    ("the same for every image: a fixed scale for each channel", lambda s: s.over_images < SAME),
    ("saturated: channels are either on or off", lambda s: s.near_zero + s.near_one >= STUCK),
    ("the same for every channel: one scale for each image", lambda s: s.over_channels < SAME),
    ("differs between images and between channels", lambda s: True),
)
"""What is said of a block -> when; the first that applies counts."""

THRESHOLDS = (
    f"At 0.5: within {HALF} of it; closed: below {LOW}; open: above {HIGH}. A block is called so where at least "
    f"{STUCK:.0%} of its gates are. The same: a spread (standard deviation) below {SAME}."
)
"""The thresholds of the verdicts, in words."""


def gate_statistics(gates: np.ndarray) -> GateStatistics:
    """What the gates (n, c) of one block are, for n images and c channels; computed in float64.

    Raises:
      EcaJaxError: there is no gate, or one is not finite.
    """
    gates = np.asarray(gates, np.float64)
    if gates.ndim != 2 or not gates.size:
        raise EcaJaxError(f"gates: expected an array (images, channels), got the shape {gates.shape}")
    if not np.isfinite(gates).all():
        raise EcaJaxError("gates that are not finite numbers: the weights are damaged, or of a training that failed")
    lowest, lower, median, upper, highest = map(float, np.percentile(gates, (1, 25, 50, 75, 99)))
    return GateStatistics(
        images=gates.shape[0],
        channels=gates.shape[1],
        mean=float(gates.mean()),
        low_percentile=lowest,
        lower_quartile=lower,
        median=median,
        upper_quartile=upper,
        high_percentile=highest,
        near_half=float(np.mean(np.abs(gates - 0.5) < HALF)),
        near_zero=float(np.mean(gates < LOW)),
        near_one=float(np.mean(gates > HIGH)),
        over_images=float(np.sqrt(gates.var(axis=0).mean())),
        over_channels=float(np.sqrt(gates.var(axis=1).mean())),
    )


def to_rows(blocks: Mapping[str, GateStatistics]) -> list[dict[str, object]]:
    """A row of a table for each block, for programs."""
    return [{"block": name, **dataclasses.asdict(one), "verdict": one.verdict} for name, one in blocks.items()]


def to_table(blocks: Mapping[str, GateStatistics], title: str) -> Table:
    """The statistics of every block for people, with a verdict each, and what it means below."""
    header = ("block", "channels", "median", "middle 98%", "at 0.5 (%)", "closed (%)", "open (%)")
    rows = tuple(
        (
            name,
            str(one.channels),
            f"{one.median:.3f}",
            f"{one.low_percentile:.3f} to {one.high_percentile:.3f}",
            *(f"{100 * share:.1f}" for share in (one.near_half, one.near_zero, one.near_one)),
            f"{one.over_images:.3f}",
            f"{one.over_channels:.3f}",
            one.verdict,
        )
        for name, one in blocks.items()
    )
    return Table(title, (*header, "spread over images", "over channels", "verdict"), rows, (THRESHOLDS,))


def class_means(gates: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The average gate of each channel over the images of each class.

    Args:
      gates: (n, c), of n images.
      labels: (n), the class of each image.
      classes: (k), the classes that are asked for.

    Returns:
      (k, c), float64.

    Raises:
      EcaJaxError: there is no image of one of the classes.
    """
    gates, means = np.asarray(gates, np.float64), []
    for c in classes:
        of_class = gates[labels == c]
        if not len(of_class):
            raise EcaJaxError(f"there is no image of the class {c}")
        means.append(of_class.mean(axis=0))
    return np.stack(means)
