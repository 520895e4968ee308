"""ECA-ResNet-18 on Fashion-MNIST as a PyTorch user writes it: the recipe of configs/fashion_mnist.py without eca_jax.

Run by fashion_mnist.py; alone:

    python benchmarks/fashion_mnist_torch.py --images runs/fashion_mnist/images --out result.json

The network is torchvision's ResNet with timm's ECA module, a quarter as wide. Needs the `torch` extra.
"""

import argparse
import json
import math
import pathlib

import torch
from timm.layers.eca import EcaModule
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import resnet

BATCH = 64
PLANES = (16, 32, 64, 128)
KERNEL_SIZES: dict[int, int] = dict(zip(PLANES, (3, 5, 7, 7), strict=True))  # the authors' released ECA-ResNet-18

NORMALISE = [transforms.ToTensor(), transforms.Normalize((0.286,) * 3, (0.353,) * 3)]
TRAIN = transforms.Compose([transforms.RandomHorizontalFlip(), *NORMALISE])
TEST = transforms.Compose(NORMALISE)


class EcaBlock(resnet.BasicBlock):
    """torchvision's block, with ECA after the last batch norm (ECANet, models/eca_resnet.py)."""

    def __init__(self, inplanes: int, planes: int, *args, **options):
        super().__init__(inplanes, planes, *args, **options)
        self.eca = EcaModule(kernel_size=KERNEL_SIZES[planes])

    def forward(self, x):
        residual = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(self.eca(x) + residual)


class NarrowResNet18(resnet.ResNet):
    """torchvision's ResNet-18 of `EcaBlock`s with the widths `PLANES`, initialised as torchvision does.

    Its stem is for small images: one 3x3 convolution, and no pooling.
    """

    def __init__(self, num_classes: int):
        super().__init__(EcaBlock, [2, 2, 2, 2])
        self.maxpool = nn.Identity()
        self.fc = nn.Linear(PLANES[-1], num_classes)

    def _make_layer(self, block, planes, *args, **options):
        if planes == 64:  # the first stage: the stem before it is narrow too
            self.inplanes = PLANES[0]
            self.conv1 = nn.Conv2d(3, PLANES[0], 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(PLANES[0])
        return super()._make_layer(block, planes * PLANES[0] // 64, *args, **options)


def rate(step: int, warmup: int, total: int) -> float:
    """A straight line up to 1, then a cosine down to 0."""
    return (step + 1) / warmup if step < warmup else 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (total - warmup))


def train_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """One pass; returns the mean loss over its images."""
    model.train()
    total = 0.0
    for images, labels in loader:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        total += loss.item()
    return total / len(loader)


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader) -> tuple[float, float]:
    """(top-1 from 0 to 1, mean loss) over all images."""
    model.eval()
    right, loss, count = 0, 0.0, 0
    for images, labels in loader:
        logits = model(images)
        right += (logits.argmax(1) == labels).sum().item()
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += len(labels)
    return right / count, loss / count


def main() -> None:
    """Trains, evaluates once at the end, and writes a JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=pathlib.Path, required=True, help="has train/CLASS/ and test/CLASS/")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes that load")
    parser.add_argument("--threads", type=int, default=1, help="threads that compute")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)

    train_set = ImageFolder(args.images / "train", TRAIN)
    test_set = ImageFolder(args.images / "test", TEST)
    train_loader = DataLoader(
        train_set, BATCH, shuffle=True, drop_last=True, num_workers=args.workers, persistent_workers=True
    )
    test_loader = DataLoader(test_set, BATCH, num_workers=args.workers)
    model = NarrowResNet18(len(train_set.classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    total = args.epochs * len(train_loader)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, len(train_loader) // 2, total))

    losses = []
    for epoch in range(args.epochs):
        losses.append(train_epoch(model, train_loader, optimizer, scheduler))
        print(f"epoch {epoch + 1}/{args.epochs}: loss {losses[-1]:.4f}", flush=True)
    top1, test_loss = evaluate(model, test_loader)
    print(f"held-out top-1 {top1:.2%}, loss {test_loss:.4f}", flush=True)
    steps = args.epochs * len(train_loader)
    parameters = sum(p.numel() for p in model.parameters())
    result = {"steps": steps, "parameters": parameters, "top1": top1, "loss": test_loss, "train_losses": losses}
    args.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
