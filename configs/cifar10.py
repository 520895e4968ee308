"""ECA-ResNet-18 with the small stem on CIFAR-10: 32x32 pixels, the usual pad-and-crop recipe.

    eca-jax prepare cifar10             (once; see README)
    python train.py --config configs/cifar10.py

`--data.name fashion_mnist` or `mnist` with --preprocess.image-size 28 --preprocess.eval-resize 28 work the same way.
Not run by this project: it has had no CIFAR-10. A step of it was.
"""

from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.tasks import Classification

config = Config(
    model=ModelConfig(name="eca_resnet18", small_stem=True),
    data=DataConfig(name="cifar10", eval_split="test"),
    task=Classification(
        PreprocessConfig(
            image_size=32,
            eval_resize=32,
            augment="pad_and_crop",
            pad=4,
            mean=(0.491, 0.482, 0.447),
            std=(0.247, 0.243, 0.262),
        )
    ),
    optim=OptimConfig(lr=0.1, weight_decay=5e-4, schedule="cosine", warmup_epochs=5),
    batch_size=128,
    epochs=200,
    workdir="runs/cifar10",
)
