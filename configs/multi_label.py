"""Several labels an image, or none: a new head on ImageNet's weights, trained on a table of images.

    python train.py --config configs/multi_label.py --data.name csv:/path/to/tables

The directory has train.csv and val.csv, each with the heading `path,label` and a row `images/1.jpg,beach;dog` for each
image; with one table alone, say --data.name csv:/path/table.csv --data.train-split 'train[:90%]' --data.eval-split
'train[90%:]'. The weights are downloaded from the Hugging Face hub once; --model.pretrained takes any file or run of
the same network. The score is mean average precision; what to expect depends on the images.
"""

from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.tasks import MultiLabel

config = Config(
    model=ModelConfig("ecaresnet50t", pretrained="ecaresnet50t.a1_in1k", skip=("fc.*",), batch_norm_group=64),
    data=DataConfig("csv:tables", eval_split="val"),
    task=MultiLabel(preprocess=PreprocessConfig.from_crop_share(224, 0.95, interpolation="bicubic")),
    optim=OptimConfig(
        lr=0.01, lr_batch_size=64, lr_scales=(("fc.*", 1.0), ("*", 0.1)), schedule="cosine", warmup_epochs=1
    ),
    batch_size=64,
    epochs=20,
    workdir="runs/multi_label",
)
