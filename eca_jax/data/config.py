"""Where the images of a run come from."""

import dataclasses

from eca_jax.errors import EcaJaxError, expect_positive
from eca_jax.plain import TypedFields


@dataclasses.dataclass(frozen=True)
class DataConfig(TypedFields, at="data"):
    """Where the images come from."""

    name: str = "imagenet2012"
    """A TFDS name, 'digits', 'folder:/path' or 'csv:/path'; 'python' in a run whose data were given to `train`."""
    data_dir: str | None = None
    """The directory of TFDS data sets; None is TFDS's default."""
    train_split: str = "train"
    """The training split in TFDS's notation, e.g. 'train[:90%]'."""
    eval_split: str = "validation"
    """The split to evaluate on."""
    num_threads: int = 16
    """Threads for decoding, in each process."""
    repeats: int = 1
    """Repeated augmentation: the number of copies of an example in a batch, each with its own augmentation. The number
    of steps in an epoch stays the same, so an epoch contains 1 / repeats of the examples."""
    max_bad: int = 0
    """The number of unreadable images and records, in all processes together, that a run tolerates. Each is named on
    stderr. In training the next example takes its place; in evaluation it is not counted. A restarted run counts from
    0."""
    image_key: str | None = None
    """The name of the image, if a TFDS data set has several images in an example, or in rows given in Python."""
    label_key: str | None = None
    """The name of the label, in the same cases."""

    @property
    def keys(self) -> tuple[str | None, str | None]:
        """The names of the image and of the label."""
        return self.image_key, self.label_key

    def __post_init__(self):
        expect_positive("data.num_threads", self.num_threads)
        expect_positive("data.repeats", self.repeats)
        if self.max_bad < 0:
            raise EcaJaxError(f"data.max_bad: expected 0 or more, got {self.max_bad}")
