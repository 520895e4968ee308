"""The form of timm's repositories on the hub: a directory with the weights, `config.json` and a model card; both ways.

`config.json` says the model and how its images are made; timm's `create_model("local-dir:PATH", pretrained=True)` and
`timm.data.resolve_data_config` read it, and so does `read_config`.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from eca_jax.convert.counterparts import Counterpart, as_called, counterpart
from eca_jax.convert.files import to_safetensors
from eca_jax.convert.infer import SE_DIVISOR
from eca_jax.convert.leaves import BROUGHT, leaves
from eca_jax.convert.state_dict import Tensors
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Architecture, Backbone
from eca_jax.models.registry import MODELS, TIMM
from eca_jax.nn.attention import SE
from eca_jax.nn.attention.se import hidden_width
from eca_jax.plain import from_plain
from eca_jax.tasks import Classification, Task

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
"""The files."""
NAMES = {prefix + name for prefix, names in TIMM.items() for name in names}
"""What is called the same here and in timm, attention included."""


@dataclasses.dataclass(frozen=True)
class TimmConfig:
    """What a config.json says."""

    path: pathlib.Path
    preprocess: PreprocessConfig
    label_names: tuple[str, ...] | None
    """None where it does not name every class."""
    architecture: str | None
    """timm's name of the model; None where it does not say it, nor the next."""
    num_classes: int | None
    in_channels: int
    output_stride: int
    attention: str | None
    """timm's name of the attention; None where that of the model says it."""

    def completed(self, found: Architecture) -> Architecture:
        """What names and shapes do not say, as the file says it.

        Raises:
          EcaJaxError: the weights are not of the model that the file says.
        """
        self._check(found)
        if self.attention is not None:
            found = as_called(found, "timm", self.attention)
        return dataclasses.replace(found, output_stride=self.output_stride)

    def _check(self, found: Architecture) -> None:
        names = {timm_name(found)[0], plain_name(found)}  # an attention may be in the arguments as well
        for key, values in (
            ("architecture", names),
            ("num_classes", {found.num_classes}),
            ("in_channels", {found.in_channels}),
        ):
            if (said := getattr(self, key)) not in {None, *values}:
                expected = " or ".join(sorted(map(repr, values)))
                raise EcaJaxError(f"{self.path}: {key} {said!r}, but the weights beside it are of {expected}")


def read_config(directory: pathlib.Path) -> TimmConfig | None:
    """What timm's config.json in a directory says; None where there is none.

    Raises:
      EcaJaxError: it is not timm's, or damaged.
    """
    path = directory / CONFIG
    if not os.path.lexists(path):
        return None
    if not path.is_file():
        raise EcaJaxError(f"{path} is no file; expected timm's, which says how images are made")
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        values = config["pretrained_cfg"]
        arguments = config.get("model_args") or {}
        channels, height, width = values["input_size"]
        channels = arguments.get("in_chans", channels)
        if height != width:
            raise EcaJaxError(f"input_size {values['input_size']}; expected [CHANNELS, SIZE, SIZE]")
        # Of other channels than RGB we keep no mean and standard deviation, and timm those of RGB, if any.
        pixels = {key: tuple(values[key]) for key in ("mean", "std")} if channels == 3 else {}
        preprocess = PreprocessConfig.from_crop_share(
            height, values["crop_pct"], interpolation=values["interpolation"], **pixels
        )
        names = config.get("label_names") or values.get("label_names")
        return TimmConfig(
            path,
            preprocess,
            _in_order(names),
            from_plain(config.get("architecture"), str | None, "architecture"),  # pyright: ignore[reportArgumentType]
            from_plain(config.get("num_classes"), int | None, "num_classes"),  # pyright: ignore[reportArgumentType]
            from_plain(channels, int, "input_size"),
            from_plain(arguments.get("output_stride", 32), int, "model_args.output_stride"),
            from_plain(
                (arguments.get("block_args") or {}).get("attn_layer"),
                str | None,  # pyright: ignore[reportArgumentType]
                "model_args.block_args.attn_layer",
            ),
        )
    except EcaJaxError as error:
        raise EcaJaxError(f"{path}: {error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise EcaJaxError(f"{path} does not say as timm does how images are made: {error!r}") from error


def _in_order(names: Any) -> tuple[str, ...] | None:
    """timm's label_names: a list, or a dict of numbers to names, in which some may be missing."""
    if isinstance(names, dict):
        by_number = {int(number): name for number, name in names.items()}
        names = [by_number[i] for i in range(len(by_number))] if set(by_number) == set(range(len(by_number))) else None
    return None if names is None else from_plain(names, tuple[str, ...], "label_names")  # pyright: ignore[reportArgumentType]


def to_directory(
    model: Backbone, tensors: Tensors, *, class_names: Sequence[str] | None, task: Task, about: str
) -> dict[str, bytes]:
    """The files of the directory, by name.

    Args:
      model: with the preprocessing that it is to be used with.
      tensors: its state dict by timm's names, in timm's order.
      class_names: None where they are not known.
      task: what it was trained to do.
      about: a line on what the model is, for the card.
    """
    config = _config(model, tensors, class_names)
    return {
        CARD: _card(model, config, about, list(shortcomings(model, task))).encode(),
        CONFIG: (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
        WEIGHTS: to_safetensors(tensors),
    }


def shortcomings(model: Backbone, task: Task) -> Iterator[str]:
    """What the form does not say of a model, and what timm cannot do with it: a clause each."""
    reasons = list(_not_built(model))
    if reasons:
        yield f"timm's create_model does not build it ({', '.join(reasons)}), eca_jax.load_pretrained does"
    if task.name != Classification.name:
        yield f"it does not say that the task was {task.name!r}: what is read from it classifies"
    if model.in_channels != 3:
        yield f"its mean and std are those of RGB, not of the {model.in_channels} channels"
    if model.preprocess.train_size != model.preprocess.image_size:
        yield f"it does not say that training saw images of {model.preprocess.train_size} pixels"


def _not_built(model: Backbone) -> Iterator[str]:
    architecture = model.architecture
    if architecture.small_stem:
        yield "small_stem"
    if architecture.width_multiplier != 1:
        yield f"width_multiplier {architecture.width_multiplier}"
    theirs = counterpart(architecture, "timm")
    if isinstance(theirs, Counterpart) and theirs.arguments:
        said = ", ".join(f"{name}={value!r}" for name, value in theirs.arguments.items())
        yield f"the arguments {said} of {theirs.name!r}"
    if any(leaf.layer in BROUGHT for leaf in leaves(model)):
        yield f"the attention {architecture.attention.kind!r} of a plugin"
    for leaf in leaves(model):
        if leaf.layer is SE and leaf.name == "fc1.kernel":
            channels, hidden = leaf.variable.shape
            if hidden != hidden_width(channels, divisor=SE_DIVISOR):
                yield f"SE with {hidden} hidden channels for {channels}"
                return


def plain_name(architecture: Architecture) -> str:
    """What timm calls the network without its attention."""
    backbone, _ = MODELS[architecture.name]
    return {"mobilenet_v2": "mobilenetv2_100"}.get(backbone, backbone)


def timm_name(architecture: Architecture) -> tuple[str, dict[str, Any]]:
    """What timm's `create_model` builds it by: a name, and arguments besides."""
    own, theirs = MODELS[architecture.name][1], counterpart(architecture, "timm")
    layer = theirs.name if isinstance(theirs, Counterpart) else architecture.attention.kind  # that of a plugin
    arguments = {} if architecture.output_stride == 32 else {"output_stride": architecture.output_stride}
    if architecture.name in NAMES and layer in ("", own.kind):
        return architecture.name, arguments
    return plain_name(architecture), arguments | ({"block_args": {"attn_layer": layer}} if layer else {})


def _config(model: Backbone, tensors: Tensors, class_names: Sequence[str] | None) -> dict[str, Any]:
    """config.json, as timm's `save_config_for_hf` writes it."""
    name, arguments = timm_name(model.architecture)
    preprocess, num_classes = model.preprocess, model.architecture.num_classes
    size = preprocess.image_size
    keys = list(tensors)
    return {
        "architecture": name,
        "num_classes": num_classes,
        "num_features": model.feature_info[-1].channels,
        "global_pool": "avg",
        **({} if class_names is None else {"label_names": list(class_names)}),
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [model.in_channels, size, size],
            "fixed_input_size": False,
            "interpolation": preprocess.interpolation,
            "crop_pct": preprocess.crop_share,
            "crop_mode": "center",
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "num_classes": num_classes,
            "pool_size": [math.ceil(size / model.feature_info[-1].stride)] * 2,
            "first_conv": keys[0].removesuffix(".weight"),
            "classifier": keys[-1].removesuffix(".bias"),
        },
    }


def _card(model: Backbone, config: dict[str, Any], about: str, missing: Sequence[str]) -> str:
    """README.md, with the header that the hub reads."""
    preprocess = model.preprocess
    parameters = sum(np.prod(leaf.variable.shape, dtype=int) for leaf in leaves(model) if leaf.trainable)
    not_said = "".join(f"- But {clause}.\n" for clause in missing)
    return f"""\
---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- eca_jax
---
# {config["architecture"]}

Written by eca_jax, in timm's form: {about}.

- Parameters: {parameters:,}; classes: {config["num_classes"]}.
- Images: the short side is resized to {preprocess.eval_resize} pixels ({preprocess.interpolation}), of which the middle
  {preprocess.image_size} x {preprocess.image_size} are taken, scaled to 0..1, minus {list(preprocess.mean)}, divided by
  {list(preprocess.std)}.
{not_said}
```python
model = timm.create_model("local-dir:PATH", pretrained=True).eval()  # or "hf-hub:OWNER/NAME"
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))

model = eca_jax.load_pretrained("PATH")  # or "OWNER/NAME"; model.preprocess says how its images are made
```
"""
