"""The values of a network's attention gates for given images, and what can be said of them."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eca_jax.analysis.table import Table
from eca_jax.analysis.taps import Notes, Path, StandIn, Tap, expect_evaluation, replaced
from eca_jax.errors import EcaJaxError, nearest
from eca_jax.models.base import Backbone
from eca_jax.nn.attention import ChannelGate
from eca_jax.nn.attention.base import scale

GateFunction = Callable[[jax.Array], dict[str, jax.Array]]
"""Normalised images (b, h, w, c) -> the gates of every block."""
Gates = jax.Array | np.ndarray | Callable[[jax.Array], jax.Array]
"""(c,) or (b, c); or a function of the gates (b, c) that the attention computes."""


def channel_gates(model: Backbone, images: jax.Array) -> dict[str, jax.Array]:
    """The gates of every block for every image.

    Args:
      model: a network whose attention computes one gate for each channel, in evaluation mode. Such are all
        `ChannelGate`s (ECA, SE, ESE, ...), BA and EMCA, and every other attention with a method `gates` that maps its
        input (b, ..., c) to the gates (b, c), by which it scales it, as SRM and FCA have. CBAM's and other gates of
        single pixels are none of these: `activations` has what such an attention returns.
      images: normalised, (b, h, w, 3).

    Returns:
      The block's name ('layer1.0', in the order of the network) -> its gates (b, c), float32. They are in (0, 1) where
      the attention ends with a sigmoid.

    Raises:
      EcaJaxError: the model does not come from `create_model`, or is in training mode, where the gates of an image
        depend on the whole batch, or its attention has no gate for each channel.

    Example:
      >>> import eca_jax
      >>> import jax.numpy as jnp
      >>> from eca_jax.analysis import channel_gates
      >>> from flax import nnx
      >>> model = eca_jax.create_model("eca_resnet18", width_multiplier=0.125, rngs=nnx.Rngs(0))
      >>> model.eval()
      >>> gates = channel_gates(model, jnp.zeros((2, 64, 64, 3)))
      >>> list(gates)[:3], gates["layer4.1"].shape
      (['layer1.0', 'layer1.1', 'layer2.0'], (2, 64))
    """
    return gate_function(model)(images)


def gate_function(model: Backbone) -> GateFunction:
    """`channel_gates` of a model for many batches: what it checks of the model, it checks once.

    Raises:
      EcaJaxError: as `channel_gates`.
    """
    gated_blocks(model)
    graphdef, state = nnx.split(model)
    return lambda images: dict(_gates(graphdef, state, images))


@functools.partial(jax.jit, static_argnums=0)
def _gates(graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array) -> collections.OrderedDict:
    notes, model = Notes(), nnx.merge(graphdef, state)
    _with_taps(model, {block: notes.of(block) for block in gated_blocks(model)}).features(images)
    return collections.OrderedDict(notes)


def with_gates(model: Backbone, gates: Mapping[str, Gates]) -> Backbone:
    """A copy of a network whose blocks scale channels by other gates than their attention's.

    What the gates do is seen by changing them: fixed ones (a mean over images), one channel closed, or gates by which
    to differentiate (`jax.jacrev(lambda gate: with_gates(model, {"layer4.1": gate})(images))`).

    Args:
      model: as for `channel_gates`.
      gates: the block's name -> gates (c,) for all images or (b, c); or a function of those (b, c) that the attention
        computes, which returns such. Other blocks keep theirs.

    Returns:
      The network, in evaluation mode like the one that is given, which stays as it is.

    Raises:
      EcaJaxError: as `channel_gates`; or there is no such block, and the most similar ones are named. When the network
        is called: the gates have another shape.

    Example:
      >>> import eca_jax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from eca_jax.analysis import channel_gates, with_gates
      >>> from flax import nnx
      >>> model = eca_jax.create_model("eca_resnet18", width_multiplier=0.125, rngs=nnx.Rngs(0))
      >>> model.eval()
      >>> images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
      >>> closed = with_gates(model, {"layer4.1": lambda gates: gates.at[:, 5].set(0)})  # channel 5 of a block
      >>> channel_gates(closed, images)["layer4.1"][:, 5]
      Array([0., 0.], dtype=float32)
      >>> bool(jnp.allclose(closed(images), model(images)))
      False
    """
    for block in gates.keys() - (known := gated_blocks(model)).keys():
        raise EcaJaxError(f"gates: there is no block {block!r} with channel gates.{nearest(block, known)}")
    return _with_taps(model, {block: _given(block, gate) for block, gate in gates.items()})


def _given(block: str, gates: Gates) -> Tap:
    """The tap that puts gates in place of those that the attention computes."""

    def tap(own: jax.Array) -> jax.Array:
        new = jnp.asarray(gates(own) if callable(gates) else gates, own.dtype)
        if new.shape not in (own.shape, own.shape[1:]):
            raise EcaJaxError(f"gates: of {block} expected {own.shape[1:]} or {own.shape}, got the shape {new.shape}")
        return jnp.broadcast_to(new, own.shape)

    return tap


def gated_blocks(model: Backbone) -> dict[str, Path]:
    """The name of each block with channel gates, in the order of the network -> the path of its attention.

    Raises:
      EcaJaxError: as `channel_gates`.
    """
    if not isinstance(model, Backbone):
        raise EcaJaxError(f"model: expected a network of create_model, got {type(model).__name__}")
    expect_evaluation(model)
    blocks = [path for path, module in nnx.iter_modules(model) if _stand_in(getattr(module, "attn", None))]
    if not blocks:
        name, kind = model.architecture.name, model.architecture.attention.kind
        raise EcaJaxError(
            f"model: {name} has the attention {kind!r}, which computes no gate for each channel; "
            "expected a network with a channel gate, such as eca_resnet50 or se_resnet50"
        )
    return {".".join(map(str, path)): (*path, "attn") for path in blocks}


def _with_taps(model: Backbone, taps: Mapping[str, Tap]) -> Backbone:
    """A copy of a network with a function behind the gates of blocks."""
    paths = gated_blocks(model)

    def stand_in(tap: Tap) -> Callable[[Any], Any]:
        return lambda attn: _stand_in(attn)(attn, tap)

    return replaced(model, {paths[block]: stand_in(tap) for block, tap in taps.items()})


def _stand_in(attn: Any) -> Any:
    """What stands in for an attention, and hands its gates to a tap; None where there are none."""
    return next((stand_in for applies, stand_in in STAND_INS if applies(attn)), None)


class _OfAverages(StandIn, ChannelGate):
    """For a `ChannelGate`."""

    def gate(self, s: jax.Array) -> jax.Array:
        return self.tap(self.layer.gate(s))


class _OfActivations(StandIn):
    """For an attention with a method `gates`."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return scale(x, self.tap(self.layer.gates(x)))


class _OfBlock(StandIn):
    """For an attention whose gates look at more of a block than its end: BA and EMCA."""

    def after(self, *seen: Any, **options: Any) -> _OfAverages:
        return _OfAverages(self.layer.after(*seen, **options), self.tap)


STAND_INS: tuple[tuple[Callable[[Any], bool], type[StandIn]], ...] = (
    (lambda attn: isinstance(attn, ChannelGate), _OfAverages),
    (lambda attn: hasattr(attn, "gates"), _OfActivations),
    (lambda attn: hasattr(attn, "after"), _OfBlock),
)
"""Whether an attention is of a kind -> what stands in for it; the first that applies counts."""


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

    Example:
      >>> import numpy as np
      >>> from eca_jax.analysis import gate_statistics
      >>> statistics = gate_statistics(np.array([[0.1, 0.9], [0.1, 0.9]]))  # of two images
      >>> statistics.median, statistics.over_images, statistics.over_channels
      (0.5, 0.0, 0.4)
      >>> statistics.verdict
      'the same for every image: a fixed scale for each channel'
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
