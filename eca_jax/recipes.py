"""Published training procedures on ImageNet, as configurations; files in `configs/` call these functions."""

import dataclasses

from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.tasks import Classification
from eca_jax.tasks.mix import MixConfig

IMAGENET = DataConfig(name="imagenet2012", eval_split="validation")


def paper(name: str) -> Config:
    """ECA-Net's own procedure (section 4.1 and the authors' repository): SGD, no warm-up, decay of every parameter.

    With another batch size, the learning rate is scaled in proportion, and the statistics group stays the same: the
    images that one of the authors' GPUs held.
    """
    if "mobilenet" in name:
        return Config(
            model=ModelConfig(name, batch_norm_group=96),
            data=IMAGENET,
            optim=OptimConfig(
                lr=0.045, lr_batch_size=96, weight_decay=4e-5, schedule="exponential", decay_per_epoch=0.98
            ),
            batch_size=96,
            epochs=400,
            workdir=f"runs/{name}",
        )
    return Config(
        model=ModelConfig(name, batch_norm_group=64),
        data=IMAGENET,
        optim=OptimConfig(lr=0.1, lr_batch_size=256, weight_decay=1e-4, schedule="step", drop_epochs=(30, 60, 90)),
        batch_size=256,
        epochs=100,
        workdir=f"runs/{name}",
    )


def strikes_back(procedure: str, name: str) -> Config:
    """A1, A2 or A3 of "ResNet strikes back" (Wightman, Touvron and Jegou 2021, arXiv 2110.00476, table 2).

    The procedures use LAMB, binary cross entropy on the labels of both mixed images, Mixup, CutMix and RandAugment; A1
    and A2 also repeated augmentation and stochastic depth. As with timm's defaults in these runs, gradients are clipped
    to norm 1, vectors are not decayed, and a label counts if its share is more than 0.2. The original's statistics
    group was what a GPU held; here it is 128.
    """
    row = STRIKES_BACK[procedure]
    return Config(
        model=ModelConfig(name, batch_norm_group=128, drop_path=row.drop_path),
        data=dataclasses.replace(IMAGENET, repeats=row.repeats),
        task=Classification(
            preprocess=PreprocessConfig.from_crop_share(
                224,
                0.95,
                train_image_size=row.train_image_size,
                interpolation="bicubic",
                train_interpolation="random",
                randaugment=row.randaugment,
                randaugment_std=0.5,
            ),
            mix=MixConfig(mixup_alpha=row.mixup_alpha, cutmix_alpha=1.0),
            loss_function="sigmoid",
            label_smoothing=row.label_smoothing,
            target_threshold=0.2,
        ),
        optim=OptimConfig(
            "lamb",
            lr=row.lr,
            lr_batch_size=2048,
            weight_decay=row.weight_decay,
            decay_vectors=False,
            clip_norm=1.0,
            schedule="cosine",
            warmup_epochs=5,
        ),
        batch_size=2048,
        epochs=row.epochs,
        workdir=f"runs/{name}_{procedure}",
    )


@dataclasses.dataclass(frozen=True)
class StrikesBack:
    """One column of the paper's table 2."""

    epochs: int
    lr: float
    weight_decay: float
    mixup_alpha: float
    randaugment: float
    label_smoothing: float = 0.0
    drop_path: float = 0.0
    repeats: int = 1
    train_image_size: int = 224


STRIKES_BACK = {
    "a1": StrikesBack(600, 5e-3, 0.01, 0.2, 7, label_smoothing=0.1, drop_path=0.05, repeats=3),
    "a2": StrikesBack(300, 5e-3, 0.02, 0.1, 7, drop_path=0.05, repeats=3),
    "a3": StrikesBack(100, 8e-3, 0.02, 0.1, 6, train_image_size=160),
}
