"""Trains the small networks of the notebooks on tiles of photographs, and writes them to notebooks/weights/.

    pip install -e '.[notebooks]' && python notebooks/train_weights.py

One network for each attention, as configs/photographs.py describes; the last step of each becomes a file of less than
1 MB, `NAME.safetensors`, and its score on the held-out tiles an entry of scores.json. It takes about two
minutes for each on a core of an Intel Xeon. The same command goes on with runs that were interrupted. On another
machine or with another JAX the weights differ, and the scores by a few tiles.
"""

import dataclasses
import json
import pathlib
from typing import Any

import photographs

from eca_jax.config import load_config
from eca_jax.convert.convert import convert
from eca_jax.training import evaluate_run, train

ROOT = pathlib.Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "photographs"
WEIGHTS = ROOT / "notebooks" / "weights"
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {"name": "resnet18"},
    "eca_resnet18": {"name": "eca_resnet18"},
    "se_resnet18": {"name": "se_resnet18"},
    "srm_resnet18": {"name": "resnet18", "attention": "srm"},
    "cbam_resnet18": {"name": "resnet18", "attention": "cbam"},
}
"""The name of each file -> what is not as in the configuration's model."""


def main() -> None:
    photographs.write_folder(RUNS / "tiles")
    config = load_config(str(ROOT / "configs" / "photographs.py"))
    data = dataclasses.replace(config.data, name=f"folder:{RUNS / 'tiles'}")
    scores = {}
    for name, options in NETWORKS.items():
        model = dataclasses.replace(config.model, **options)
        train(dataclasses.replace(config, model=model, data=data, workdir=str(RUNS / name)))
        print(convert(RUNS / name, WEIGHTS / f"{name}.safetensors"))
        _, task, found = evaluate_run(str(RUNS / name))
        print(f"{name}: held-out {task.describe(found)}", flush=True)
        scores[name] = {key: found[key] for key in ("top1", "count")}
    (WEIGHTS / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
