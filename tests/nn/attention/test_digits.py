"""Every attention learns the digits, by the recipe of the default run, where its definition allows images of 8 pixels.

python -m pytest -m slow tests/nn/attention/test_digits.py -k cbam
"""

import dataclasses

import pytest

from eca_jax.config import ModelConfig, load_config
from eca_jax.nn.attention import ATTENTIONS, AttentionConfig
from eca_jax.training import train

NOT_ALLOWED = {"fca": "its frequencies need maps of 7 pixels, and the stages have 8, 4, 2 and 1"}
OPTIONS = {
    "gc": {"reduction": 8},  # else one hidden channel, whose layer norm is constant
    "ge": {"sides": (8, 4, 2, 1)},
    "ge_plus": {"sides": (8, 4, 2, 1)},
    "sa": {"groups": 8},
    "ema": {"factor": 8},
}
"""What an attention needs on 16 to 128 channels and maps of 8 to 1 pixels."""
TWO_PIXELS = ("srm", "mca", "simam")
"""They need a deviation over the pixels: the digits are enlarged to 16 pixels, so that the last map has 2 x 2."""
INSIDE = ("gct", "ba", "emca")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*(kind for kind in ATTENTIONS if kind not in NOT_ALLOWED), *INSIDE])
def test_digits(kind, data_dir, tmp_path):
    config = load_config("digits")
    if kind in INSIDE:
        network = {"name": f"{kind}_resnet18"}
    else:
        network = {"name": "resnet18", "attention": AttentionConfig(kind, **OPTIONS.get(kind, {}))}
    task = config.task
    if kind in TWO_PIXELS:
        task = dataclasses.replace(task, preprocess=dataclasses.replace(task.preprocess, image_size=16, eval_resize=16))
    model = ModelConfig(**network, small_stem=True, width_multiplier=0.25)
    config = dataclasses.replace(config, model=model, task=task, workdir=str(tmp_path / kind))
    top1 = train(config).evaluation["top1"]
    print(f"{kind}: held-out top-1 {top1:.2%}")
    assert top1 >= 0.98
