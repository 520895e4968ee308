"""ECA-ResNet-50 on ImageNet with the paper's recipe: 100 epochs, batch 256 with batch-norm statistics over 64 examples.

    eca-jax prepare imagenet2012        (once; see README)
    python train.py --config configs/eca_resnet50.py

The other depths: --model.name eca_resnet101 --workdir runs/eca_resnet101. On accelerators add --model.dtype bfloat16.

Published: 77.42 top-1, 93.62 top-5 (the authors' README; Table 3 prints 77.48/93.68). Not run by this project: it has
had no ImageNet.
"""

from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig

config = Config(
    model=ModelConfig(name="eca_resnet50", batch_norm_group=64),
    data=DataConfig(name="imagenet2012", eval_split="validation"),
    optim=OptimConfig(lr=0.1, weight_decay=1e-4, schedule="step", drop_epochs=(30, 60, 90)),
    batch_size=256,
    epochs=100,
    workdir="runs/eca_resnet50",
)
