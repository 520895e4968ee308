"""ECA-ResNet-18, an eighth as wide, on tiles of twelve photographs: 32 pixels, and less than 1 MB of weights.

    python notebooks/train_weights.py       (writes the tiles, and trains this with several attentions)
    python train.py --config configs/photographs.py

The notebooks look into these networks. Hardware, time and accuracy: see notebooks/train_weights.py.
"""

from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.tasks import Classification

config = Config(
    model=ModelConfig(name="eca_resnet18", small_stem=True, width_multiplier=0.125),
    data=DataConfig(name="folder:runs/photographs/tiles", eval_split="test", num_threads=2),
    task=Classification(
        PreprocessConfig(
            image_size=32,
            eval_resize=36,
            crop_area=(0.25, 1.0),
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
        )
    ),
    optim=OptimConfig(lr=0.1, weight_decay=5e-4, schedule="cosine", warmup_epochs=2),
    batch_size=64,
    epochs=40,
    workdir="runs/photographs/eca_resnet18",
)
