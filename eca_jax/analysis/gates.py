"""The values of a network's attention gates for given images."""

from typing import Any

import jax
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Backbone
from eca_jax.nn.attention import ChannelGate


def channel_gates(model: Backbone, images: jax.Array) -> dict[str, jax.Array]:
    """The gates of every block for every image.

    Args:
      model: a network whose attention is a channel gate (ECA, ECA-NS, SE), in evaluation mode.
      images: normalised, (b, h, w, 3).

    Returns:
      The block's name ('layer1.0', in the order of the network) -> its gates (b, c), float32 in (0, 1). Empty for a
      network without channel gates.

    Raises:
      EcaJaxError: the model does not come from `create_model`, or is in training mode, where the gates of an image
        depend on the whole batch.
    """
    if not isinstance(model, Backbone):
        raise EcaJaxError(f"model: expected a network of create_model, got {type(model).__name__}")
    modes = [(m, name) for _, m in nnx.iter_modules(model) for name in ("use_running_average", "deterministic")]
    if any(getattr(module, name, True) is False for module, name in modes):
        raise EcaJaxError("model: it is in training mode, where gates are of the whole batch: call model.eval() first")
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: nnx.State, images: jax.Array) -> dict[str, jax.Array]:
        model = nnx.merge(graphdef, state)
        gates = {}
        blocks: list[tuple[Any, Any]] = list(nnx.iter_modules(model))
        for path, block in blocks:
            if isinstance(getattr(block, "attn", None), ChannelGate):
                block.attn = _Recorder(block.attn, ".".join(map(str, path)), gates)
        model.features(images)
        return gates

    # jit sorts the keys of a dict: the order of the network is that of the paths.
    gates = run(state, images)
    order = [".".join(map(str, path)) for path, _ in nnx.iter_modules(model)]
    return {name: gates[name] for name in sorted(gates, key=order.index)}


class _Recorder(ChannelGate):
    """Takes the place of an attention, and records its gates."""

    def __init__(self, attn: ChannelGate, name: str, gates: dict[str, jax.Array]):
        self.attn = attn
        self.note = nnx.static(lambda gate: gates.__setitem__(name, gate))

    def gate(self, s: jax.Array) -> jax.Array:
        gate = self.attn.gate(s)
        self.note(gate)
        return gate
