"""Fine-tuning on a directory of images: a new head on ImageNet's weights, the stem and first stage frozen.

    python train.py --config configs/finetune.py --data.name folder:/path/to/images

The directory has /train/CLASS/image.jpg and /val/CLASS/image.jpg; with class folders alone, say
--data.train-split 'train[:90%]' --data.eval-split 'train[90%:]'. The weights are downloaded from the Hugging Face hub
once; --model.pretrained takes any file or run of the same network. The head learns at the full rate, the stages below
it at less and less. What to expect depends on the images.
"""

from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.tasks import Classification

config = Config(
    model=ModelConfig("ecaresnet50t", pretrained="ecaresnet50t.a1_in1k", skip=("fc.*",), batch_norm_group=64),
    data=DataConfig("folder:images", eval_split="val"),
    task=Classification(PreprocessConfig.from_crop_share(224, 0.95, interpolation="bicubic"), label_smoothing=0.1),
    optim=OptimConfig(
        lr=0.01,
        lr_batch_size=64,
        lr_scales=(
            ("fc.*", 1.0),
            ("layer4.*", 0.5),
            ("layer3.*", 0.25),
            ("layer2.*", 0.1),
            ("*", 0.0),
        ),
        schedule="cosine",
        warmup_epochs=1,
    ),
    batch_size=64,
    epochs=20,
    workdir="runs/finetune",
)
