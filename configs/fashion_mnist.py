"""ECA-ResNet-18, a quarter as wide, on Fashion-MNIST: 28 pixels, SGD with one cosine over 5 epochs.

    python benchmarks/fashion_mnist.py      (writes the images that this reads, and compares with PyTorch)
    python train.py --config configs/fashion_mnist.py

Images are mirrored and not cropped: in so few epochs a network does not learn its training images by heart. Mean and
standard deviation are the data set's.

Hardware, time and accuracy: see docs/results.md.
"""

from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.tasks import Classification

config = Config(
    model=ModelConfig(name="eca_resnet18", small_stem=True, width_multiplier=0.25),
    data=DataConfig(name="folder:runs/fashion_mnist/images", eval_split="test", num_threads=2),
    task=Classification(
        PreprocessConfig(
            image_size=28,
            eval_resize=28,
            augment="none",
            mean=(0.286, 0.286, 0.286),
            std=(0.353, 0.353, 0.353),
        )
    ),
    optim=OptimConfig(lr=0.1, weight_decay=5e-4, schedule="cosine", warmup_epochs=0.5),
    batch_size=64,
    epochs=5,
    workdir="runs/fashion_mnist/eca_jax",
)
