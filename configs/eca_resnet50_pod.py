"""ECA-ResNet-50 on ImageNet on a TPU pod: batch 4096, LARS, 90 epochs.

    python train.py --config configs/eca_resnet50_pod.py      (on every host; docs/scaling.md)

The rate is for a batch of 4096 and grows in proportion: --batch-size 1024 to 8192 need nothing else. Below 1024 the
paper's recipe does as well. Large batches need a warm-up (Goyal et al. 2017) and rates that are adapted layer by layer
(You et al. 2017); vectors are not decayed, and the labels are smoothed.

Expected: what the paper's recipe gives, within half a point. That is what these methods promise for plain ResNets; it
was not measured here or published for ECA. Not run by this project: it has had no pod and no ImageNet.
"""

import dataclasses

from eca_jax.config import OptimConfig
from eca_jax.recipes import paper
from eca_jax.tasks import Classification

base = paper("eca_resnet50")
config = dataclasses.replace(
    base,
    model=dataclasses.replace(base.model, dtype="bfloat16"),
    optim=OptimConfig(
        "lars",
        lr=6.0,
        lr_batch_size=4096,
        weight_decay=1e-4,
        decay_vectors=False,
        schedule="cosine",
        warmup_epochs=5,
    ),
    task=Classification(label_smoothing=0.1),
    batch_size=4096,
    epochs=90,
    log_every=20,
    workdir="runs/eca_resnet50_pod",
)
