"""ECA-MobileNetV2 on ImageNet with the paper's recipe: 400 epochs, batch 96, the rate times 0.98 every epoch.

    eca-jax prepare imagenet2012        (once; see README)
    python train.py --config configs/eca_mobilenet_v2.py

Published: 72.56 top-1, 90.81 top-5 (Table 3). Not run by this project: it has had no ImageNet.
"""

from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig

config = Config(
    model=ModelConfig(name="eca_mobilenet_v2"),
    data=DataConfig(name="imagenet2012", eval_split="validation"),
    optim=OptimConfig(lr=0.045, weight_decay=4e-5, schedule="exponential", decay_per_epoch=0.98),
    batch_size=96,
    epochs=400,
    workdir="runs/eca_mobilenet_v2",
)
