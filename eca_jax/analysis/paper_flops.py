"""The FLOPs that the ECA-Net paper and its poster print, by the rules of the tool that counted them.

The authors counted with thop (github.com/Lyken17/pytorch-OpCounter), as ECANet's paras_flops.py does, and divided by
2^30, on MobileNetV2 by 2^20. thop adds up what it attributes to PyTorch's modules, and its rules changed between
releases. Two of them give the printed digits:

=====================================  ==============================  ==============================
what thop sees in PyTorch's networks   Table 3: thop of July 2019      poster: thop of Aug. to Dec. 2019
=====================================  ==============================  ==============================
convolution, also ECA's over channels  its multiply-adds               the same
dense layer, c_in to c_out             (2 c_in - 1) c_out              the same
batch norm                             4 for each element              the same
average pool that is a module          window + 1 for each output      the same
ReLU, ReLU6                            1 for each element              0
max pool, sigmoid, products, sums      0                               0
=====================================  ==============================  ==============================

A module that is called several times counts with its last call alone: of the one ReLU of a residual block, that at its
end. MobileNetV2's last average is no module, so it counts 0. The printed numbers are therefore neither multiply-adds
nor twice their number, and no tool of today gives them.
"""

import dataclasses
import math
import re
from collections.abc import Callable

from eca_jax.analysis.complexity import Complexity, Layer
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Architecture
from eca_jax.models.registry import MODELS


@dataclasses.dataclass(frozen=True)
class Twin:
    """What the authors' PyTorch network has besides our layers: regular expressions for the paths of our norms."""

    rectified: str
    """Those whose output a counted call of a ReLU takes."""
    squeezed: str
    """The last of every block: its attention averages their output."""
    pooled: bool
    """The network's last average is a module."""


BASIC = Twin(r"bn1|layer\d\.\d+\.bn2", r"layer\d\.\d+\.bn2", pooled=True)
BOTTLENECK = Twin(r"bn1|layer\d\.\d+\.bn3", r"layer\d\.\d+\.bn3", pooled=True)
TWINS = {
    "resnet18": BASIC,
    "resnet34": BASIC,
    "resnet50": BOTTLENECK,
    "resnet101": BOTTLENECK,
    "resnet152": BOTTLENECK,
    "mobilenet_v2": Twin(r"(stem|last|.*\.expand|.*\.depthwise)\.bn", r"blocks\.\d+\.bn", pooled=False),
}
"""By backbone."""
HIDDEN = r".*\.attn\.fc1"
"""SE's first dense layer, which a ReLU of its own follows."""
MODULES: dict[str, Callable[[Layer], int]] = {
    "Conv": lambda layer: layer.multiply_adds,
    "ECA": lambda layer: layer.multiply_adds,
    "Linear": lambda layer: 2 * layer.multiply_adds - layer.activations,
    "BatchNorm": lambda layer: 4 * _elements(layer),
}
"""Kind of a layer -> what thop counts."""
RECTIFIER = {"table 3": 1, "poster": 0}
"""Where numbers were printed -> what a ReLU counts for each element."""


def paper_flops(of: Complexity, printed: str = "table 3") -> int:
    """The FLOPs of a plain, SE or ECA network as the paper counts them: divide by 2^30, on MobileNetV2 by 2^20.

    Args:
      of: what `complexity` returned for a network of `create_model`.
      printed: 'table 3' (of the paper) or 'poster' (its ResNet-18 and 34).

    Raises:
      EcaJaxError: another place than these; or a network that is not in them, for which no rule can be checked.

    Example:
      >>> from eca_jax.analysis import complexity, paper_flops
      >>> round(paper_flops(complexity("eca_resnet50")) / 2**30, 2)  # the paper prints 3.86
      3.86
    """
    if printed not in RECTIFIER:
        raise EcaJaxError(f"paper_flops: expected one of {', '.join(map(repr, RECTIFIER))}, got {printed!r}")
    if reason := undefined(of.architecture):
        raise EcaJaxError(f"paper_flops: {reason}")
    assert of.architecture
    twin = TWINS[MODELS[of.architecture.name][0]]

    def chosen(pattern: str) -> list[Layer]:
        return [layer for layer in of.layers if re.fullmatch(pattern, layer.path)]

    def pool(layer: Layer) -> int:
        """A global average: each of the c outputs has a window of h * w."""
        height, width, channels = layer.output or (0, 0, 0)
        return (height * width + 1) * channels

    squeezed = chosen(twin.squeezed)
    rectified = sum(map(_elements, chosen(twin.rectified) + chosen(HIDDEN)))
    gates = 0 if of.architecture.attention.kind == "none" else sum(map(pool, squeezed))
    last = pool(squeezed[-1]) if twin.pooled else 0
    modules = sum(MODULES[layer.kind](layer) for layer in of.layers)
    return modules + RECTIFIER[printed] * rectified + gates + last


def undefined(architecture: Architecture | None) -> str | None:
    """Why the paper's rules say nothing of a network; None if they do."""
    rules = "the paper's rules are known for plain, SE and ECA networks"
    if architecture is None:
        return f"{rules} of create_model, and this one was made otherwise"
    name, attention = architecture.name, architecture.attention
    if MODELS[name][0] not in TWINS:
        return f"{rules} on {', '.join(TWINS)}, and this is {name}"
    if attention.kind not in ("none", "se", "eca") or getattr(attention.options, "circular", False):
        return f"{rules}, and this one has {attention!r}"
    return None


def _elements(layer: Layer) -> int:
    return math.prod(layer.output or ())
