"""A small ECA-ResNet-18 on scikit-learn's handwritten digits: the default run, and a check of a new installation.

    python train.py

Hardware and time: see docs/results.md.
"""

from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.tasks import Classification

config = Config(
    model=ModelConfig(name="eca_resnet18", small_stem=True, width_multiplier=0.25),
    data=DataConfig(name="digits", eval_split="test", num_threads=2),
    task=Classification(
        PreprocessConfig(
            image_size=8,
            eval_resize=8,
            augment="pad_and_crop",
            pad=1,
            flip=False,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        )
    ),
    optim=OptimConfig(lr=0.1, weight_decay=5e-4, schedule="cosine", warmup_epochs=2),
    batch_size=64,
    epochs=30,
    log_every=50,
    workdir="runs/digits",
)
