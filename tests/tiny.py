"""What a package outside the repository brings: two small backbones that compile in seconds; and their way out."""

import contextlib
import functools
from collections.abc import Iterator

import jax
from flax import nnx

from eca_jax import plugins
from eca_jax.convert import leaves
from eca_jax.data.records import SOURCES
from eca_jax.models import registry
from eca_jax.models.base import Backbone, Feature
from eca_jax.models.resnet import BasicBlock, ResNet, Variant
from eca_jax.nn.attention import ATTENTIONS, Place
from eca_jax.nn.bricks import Bricks
from eca_jax.nn.layers import linear
from eca_jax.tasks import TASKS


class Tiny(Backbone):
    """Three convolutions, an attention after the first."""

    def __init__(
        self,
        bricks: Bricks,
        *,
        num_classes: int,
        small_stem: bool = False,
        width_multiplier: float = 1.0,
        dropout: float | None = None,
        drop_path: float = 0.0,
    ):
        first, second, third = (int(channels * width_multiplier) for channels in (16, 32, 64))
        self.conv1, self.bn1 = bricks.conv(3, first, 3), bricks.norm(first)
        self.attn = bricks.attn(first, Place())
        self.conv2, self.bn2 = bricks.conv(first, second, 3, 2), bricks.norm(second)
        self.conv3, self.bn3 = bricks.conv(second, third, 3, 2), bricks.norm(third)
        self.feature_info = (Feature("first", first, 1), Feature("second", second, 2), Feature("third", third, 4))
        self.fc = linear(third, num_classes, param_dtype=bricks.param_dtype, rngs=bricks.rngs)

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        first = self.attn(nnx.relu(self.bn1(self.conv1(x))))
        second = nnx.relu(self.bn2(self.conv2(first)))
        return {"first": first, "second": second, "third": nnx.relu(self.bn3(self.conv3(second)))}

    def head(self, x: jax.Array, *, pre_logits: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.pool(x)
        return x if pre_logits else self.fc(x)


def register() -> None:
    """`tiny` and `resnet10` (a ResNet of one block a stage), with their `se_` and `eca_`, where they are not there."""
    if "tiny" not in registry.MODELS:
        registry.register_backbone("tiny", Tiny)
        registry.register_backbone("resnet10", functools.partial(ResNet, Variant(BasicBlock, (1, 1, 1, 1))))


@contextlib.contextmanager
def brought_from_outside() -> Iterator[None]:
    """What is registered inside is gone after it, for the other tests of this process."""
    tables = [registry.MODELS, ATTENTIONS, SOURCES, TASKS]
    places = [(table, name) for table in tables for name in ("_entries", "_plugins")]
    places += [(registry, "BACKBONES"), (leaves, "RULES"), (leaves, "BROUGHT"), (plugins, "_registered")]
    before = [getattr(owner, name).copy() for owner, name in places]
    try:
        yield
    finally:
        for (owner, name), values in zip(places, before, strict=True):
            getattr(owner, name).clear()
            getattr(owner, name).update(values)
