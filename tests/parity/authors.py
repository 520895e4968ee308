"""Stand-ins for the authors' networks (ECANet, models/), made of torchvision's and timm's; weights; comparisons."""

import jax
import jax.numpy as jnp
import numpy as np
import timm.layers
import torch
import torchvision
from flax import nnx
from torchvision.models import resnet

from eca_jax.convert.leaves import COUNTER, leaves

RESNETS = {
    "resnet18": (resnet.BasicBlock, (2, 2, 2, 2), (3, 5, 7, 7)),
    "resnet34": (resnet.BasicBlock, (3, 4, 6, 3), (3, 3, 5, 7)),
    "resnet50": (resnet.Bottleneck, (3, 4, 6, 3), (3, 5, 5, 7)),
    "resnet101": (resnet.Bottleneck, (3, 4, 23, 3), (3, 3, 5, 7)),
    "resnet152": (resnet.Bottleneck, (3, 8, 36, 3), (3, 3, 5, 7)),
}
"""Block, blocks of every stage, and the kernel sizes that the authors released."""
NAMES = (*RESNETS, "mobilenet_v2")
PLANES = (64, 128, 256, 512)


def with_eca(block: type, sizes: dict[int, int]) -> type:
    """torchvision's block with `eca` after the last batch norm, before the addition; registered before the shortcut."""

    class EcaBlock(block):
        def __init__(self, inplanes: int, planes: int, *args, **options):
            super().__init__(inplanes, planes, *args, **options)
            shortcut = self._modules.pop("downsample", None)
            self.eca = timm.layers.EcaModule(kernel_size=sizes[planes])
            self.downsample = shortcut

        def forward(self, x):
            residual = x if self.downsample is None else self.downsample(x)
            x = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            if block is resnet.Bottleneck:
                x = self.bn3(self.conv3(self.relu(x)))
            return self.relu(self.eca(x) + residual)

    return EcaBlock


class NarrowResNet(resnet.ResNet):
    """torchvision's with a part of its channels: 64 planes are `PLANES[0] // divisor`, and so on."""

    def __init__(self, block: type, depths: list[int], divisor: int, num_classes: int):
        self.divisor = divisor
        super().__init__(block, depths)
        self.fc = torch.nn.Linear(self.inplanes, num_classes)

    def _make_layer(self, block, planes, *args, **options):
        if planes == PLANES[0]:
            self.inplanes //= self.divisor
            self.conv1 = torch.nn.Conv2d(3, self.inplanes, 7, 2, 3, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(self.inplanes)
        return super()._make_layer(block, planes // self.divisor, *args, **options)


def eca_resnet(
    name: str, *, num_classes: int = 1000, sizes: tuple[int, ...] | None = None, divisor: int = 1
) -> torch.nn.Module:
    block, depths, released = RESNETS[name]
    by_planes = dict(zip((planes // divisor for planes in PLANES), sizes or released, strict=True))
    return NarrowResNet(with_eca(block, by_planes), list(depths), divisor, num_classes)


def eca_mobilenet_v2(*, num_classes: int = 1000, sizes: tuple[int, int] = (1, 3)) -> torch.nn.Module:
    """`eca` is the last item of every block's `conv`; one size below 96 channels, the other from there on."""
    model = torchvision.models.mobilenet_v2(num_classes=num_classes, dropout=0.25)
    for block in model.features[1:-1]:
        block.conv.append(timm.layers.EcaModule(kernel_size=sizes[block.out_channels >= 96]))
    return model


def eca_model(name: str, **options) -> torch.nn.Module:
    return eca_mobilenet_v2(**options) if name == "mobilenet_v2" else eca_resnet(name, **options)


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights and running statistics: in a network as it is made, many mistakes change nothing.

    A channel's scale is 0.3 +- 0.3, its shift and running mean 0 +- 0.3, its running variance 0.5 to 2.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("num_batches_tracked"):
            continue
        with torch.no_grad():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.ndim > 1:  # keeps the scale of activations through the depth
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
            else:
                tensor.normal_(0.3 if name.endswith("weight") else 0, 0.3, generator=generator)
    return model


def without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The state dict, copied: what PyTorch changes later does not change it."""
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def gradients(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def to_torch(images: np.ndarray) -> torch.Tensor:
    """b h w c -> b c h w."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def error(actual: jax.Array | np.ndarray, expected: np.ndarray) -> float:
    """The greatest difference, relative to the greatest value: of a layer or parameter, its scale."""
    scale = np.abs(expected).max()
    assert 1e-6 < scale < 1e6, scale  # else the comparison says nothing
    return float(np.abs(np.asarray(actual) - expected).max() / scale)


def worst(actual: dict, expected: dict) -> tuple[float, str]:
    """The greatest error over arrays by name, and whose it is."""
    assert set(actual) == set(expected)
    return max((error(actual[name], value), name) for name, value in expected.items())


FLOAT64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def exchange(ours: nnx.Module, theirs: torch.nn.Module) -> None:
    """Gives our layer the weights of theirs by the conversion's rules, and sees that the way back gives all of them."""
    tensors = {name: value for name, value in arrays(theirs).items() if not name.endswith(COUNTER)}
    found = {leaf.torch_name: leaf for leaf in leaves(ours)}
    assert list(found) == list(tensors)
    for name, leaf in found.items():
        leaf.variable.set_value(jnp.asarray(leaf.layout.from_torch(tensors[name])))
        back = np.asarray(leaf.layout.to_torch(np.asarray(leaf.variable[...])))
        np.testing.assert_array_equal(back, tensors[name], err_msg=name)
