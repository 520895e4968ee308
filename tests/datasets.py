"""Small data sets that have the names and the features of the real ones."""

import numpy as np
import tensorflow_datasets as tfds

from eca_jax.data.digits import png


def prepare_like(name: str, directory, splits: dict[str, int], file_format: str = "array_record") -> None:
    """Writes what TFDS's own builder of that name would (version, configuration, features), with images made here."""
    original = tfds.builder(name, data_dir=str(directory))
    features = original.info.features

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = original.version
        BUILDER_CONFIGS = [original.builder_config] if original.builder_config else []

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(n) for split, n in splits.items()}

        def _generate_examples(self, n):
            shape = [side or 24 for side in features["image"].shape]
            pixels = [np.full(shape[: 2 if shape[2] == 1 else 3], i) for i in range(n)]
            for i in range(n):
                example = {"image": png(pixels[i]), "label": i % features["label"].num_classes}
                yield i, example | {key: f"file {i}" for key in features if key not in example}

    Builder.name = name
    Builder(data_dir=str(directory), file_format=file_format).download_and_prepare()
