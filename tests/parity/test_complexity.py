"""Our counts are those of PyTorch's and fvcore's counters on the authors' networks, for any image."""

import warnings

import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
pytest.importorskip("timm")
fvcore = pytest.importorskip("fvcore.nn")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from eca_jax.analysis.complexity import abstract_model, complexity  # noqa: E402
from tests.parity.authors import NAMES, eca_model  # noqa: E402

pytestmark = pytest.mark.parity
COUNTED = {"conv", "linear", "matmul", "einsum", "bmm"}
"""What fvcore calls the operations that we count."""
SHORT = ("resnet18", "mobilenet_v2")
"""What is compared with fvcore, which takes long, at once; the other networks are among the slow tests."""


class SE(torch.nn.Module):
    """Squeeze and excitation as in the ECA-Net paper: no biases."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.fc1 = torch.nn.Linear(channels, channels // reduction, bias=False)
        self.fc2 = torch.nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, x):
        return x * self.fc2(self.fc1(x.mean((2, 3))).relu()).sigmoid()[..., None, None]


def twin(prefix: str, name: str) -> torch.nn.Module:
    if prefix == "":
        return getattr(torchvision.models, name)()
    model = eca_model(name)
    if prefix == "se_":
        for block in list(model.modules()):
            if hasattr(block, "eca"):
                norm = block.bn3 if hasattr(block, "bn3") else block.bn2
                block.eca = SE(norm.num_features, 16)
            elif isinstance(block, torchvision.models.mobilenetv2.InvertedResidual):
                block.conv[-1] = SE(block.out_channels, 8)
    return model


def by_torch(model: torch.nn.Module, size: tuple[int, int]) -> int:
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, *size, device="meta"))
    return counter.get_total_flops()


def by_fvcore(analysis: str, model: torch.nn.Module, size: tuple[int, int]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counter = getattr(fvcore, analysis)(model.eval(), torch.zeros(1, 3, *size)).unsupported_ops_warnings(False)
        return sum(n for name, n in counter.by_operator().items() if name in COUNTED)


@pytest.mark.parametrize("prefix", ["", "se_", "eca_"])
@pytest.mark.parametrize("name", NAMES)
def test_flop_counter_mode(prefix, name):
    with torch.device("meta"):
        model = twin(prefix, name)
    network = abstract_model(prefix + name)
    assert complexity(network).parameters == sum(parameter.numel() for parameter in model.parameters())
    for size in ((224, 224), (160, 199)):
        assert complexity(network, size).flops == by_torch(model, size)


@pytest.mark.parametrize("prefix", ["", "se_", "eca_"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.slow) for name in NAMES]
)
def test_fvcore(prefix, name):
    model = twin(prefix, name)
    for size in ((224, 224), (96, 131)) if name == "resnet18" else ((96, 131),):
        found = complexity(prefix + name, size)
        assert found.multiply_adds == by_fvcore("FlopCountAnalysis", model, size)
        assert found.activations == by_fvcore("ActivationCountAnalysis", model, size)
