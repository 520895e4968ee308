"""Writes docs/model-table.md: `python docs/model_table.py`, which counts every network in some minutes.

Sizes come from shapes (`eca_jax.analysis.complexity`), accuracies and the authors' files from
`eca_jax.analysis.paper`, the files of torchvision and timm from the tables of docs/porting.md.
"""

import itertools
import pathlib
from collections.abc import Iterator

import eca_jax
from eca_jax.analysis import Complexity, complexity
from eca_jax.analysis.paper import POSTER, TABLE_3
from eca_jax.analysis.table import Table
from eca_jax.models.registry import MODELS, resolve_attention

DOCS = pathlib.Path(__file__).parent
PAGE = DOCS / "model-table.md"
COLUMNS = ("model", "parameters", "multiply-adds", "kernel sizes", "top-1 / top-5", "weights", "preprocessing")
TEXT = """# Table of models

Every name that `eca_jax.create_model` knows, for 1000 classes and images of 224 x 224 pixels.

- **Multiply-adds** are those of convolutions and matrix products, for one image
  ([What is counted](complexity.md#what-is-counted)).
- **Kernel sizes** are those of ECA, of each stage; MobileNetV2 has 1 below 96 channels and 3 from there on.
- **Top-1 / top-5** are what the ECA-Net paper prints of ImageNet, and its poster of ResNet-18 and 34; this project had
  no ImageNet.
- **Weights** are files that others publish: [Files that exist](porting.md#files-that-exist) says where, and more.
- **Preprocessing** is the side in pixels of the square that the network sees, its share of the short side of the
  resized image, and the filter. Where a network has several weights, these are all that occur; each carries its own.
  The mean and the standard deviation are ImageNet's.

Any plain network takes any other attention: `create_model("resnet50", attention="cbam", rngs=...)`
([Channel attention](attention.md)).

"""
NOTE = "\nThis page is written by `python docs/model_table.py`.\n"


def rows_under(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of docs/porting.md."""
    text = (DOCS / "porting.md").read_text().partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def published_weights() -> Iterator[tuple[str, str, str]]:
    """(model, weights, preprocessing) of every file that docs/porting.md lists."""
    files = {row.weights: f"eca_{row.backbone}" for row in (*TABLE_3, *POSTER) if row.weights}
    for file, model in files.items():
        yield model, f"authors: `{file}`", "224, 0.875, bilinear"
    for file, model, _, short in rows_under("torchvision's files"):
        yield model.strip("`"), f"torchvision: {file}", f"224, {224 / int(short):.3f}, bilinear"
    for name, _, images, _ in rows_under("timm's models"):
        model, _, tag = name.strip("`").partition(".")
        yield model, f"timm: `{tag}`", images


def accuracy(model: str) -> str:
    """As the paper prints it, '77.48 / 93.68'; '-' where it has no such network."""
    backbone, attention = MODELS[model][0], resolve_attention(model)
    for row in (*TABLE_3, *POSTER):
        if row.attention and row.backbone == backbone and row.attention.resolved() == attention:
            return f"{row.top1} / {row.top5}"
    return "-"


def kernel_sizes(cost: Complexity) -> str:
    """Of the ECA modules, '3 5 5 7': one for each stage, or for each run of equal ones where a stage has several."""
    found = [(layer.path.split(".")[0], layer.parameters) for layer in cost.layers if layer.kind == "ECA"]
    return " ".join(str(size) for (_, size), _ in itertools.groupby(found)) or "-"


def line(model: str) -> tuple[str, ...]:
    """The cells of a network."""
    cost = complexity(model)
    files = [(weights, images) for name, weights, images in published_weights() if name == model]
    sources = itertools.groupby(files, lambda file: file[0].partition(": ")[0])
    weights = "; ".join(f"{source}: {', '.join(it.partition(': ')[2] for it, _ in of)}" for source, of in sources)
    images = "; ".join(dict.fromkeys(images for _, images in files))
    counts = (f"{cost.parameters:,}", f"{cost.multiply_adds / 1e9:.2f} G", kernel_sizes(cost))
    return (f"`{model}`", *counts, accuracy(model), weights or "-", images or "-")


def page() -> str:
    """The text of the page."""
    table = Table("", COLUMNS, tuple(line(model) for model in eca_jax.list_models()))
    return TEXT + table.to_markdown().lstrip() + NOTE


if __name__ == "__main__":
    PAGE.write_text(page())
