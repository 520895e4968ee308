"""ECA-ResNet-18 on Fashion-MNIST with the paper's recipe made small: 28 pixels, 10 epochs, drops at 3, 6 and 9.

    python benchmarks/fashion_mnist.py      (writes the images that this reads, and compares with PyTorch)
    python train.py --config configs/fashion_mnist.py

As in the paper: SGD without warm-up, weight decay on everything, batch norm over 64 of 256 examples, random crops of 8%
to 100% of the area; evaluation on the centre of an image enlarged by 256/224.

Hardware, time and accuracy: see docs/results.md.
"""

from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.tasks import Classification

config = Config(
    model=ModelConfig(name="eca_resnet18", width_multiplier=0.25, batch_norm_group=64),
    data=DataConfig(name="folder:runs/fashion_mnist/images", eval_split="test", num_threads=2),
    task=Classification(PreprocessConfig(image_size=28, eval_resize=32)),
    optim=OptimConfig(lr=0.1, weight_decay=1e-4, schedule="step", drop_epochs=(3, 6, 9)),
    batch_size=256,
    epochs=10,
    workdir="runs/fashion_mnist/eca_jax",
)
