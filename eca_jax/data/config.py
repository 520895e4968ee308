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
    """Where TFDS data sets are; None is TFDS's default."""
    train_split: str = "train"
    """In TFDS's notation, e.g. 'train[:90%]'."""
    eval_split: str = "validation"
    """The held-out examples."""
    num_threads: int = 16
    """Threads that decode, in each process."""
    repeats: int = 1
    """Repeated augmentation: copies of an example in a batch, each augmented anew. An epoch has as many steps as
    without, and so sees 1 / repeats of the examples."""
    max_bad: int = 0
    """Unreadable images and records, in all processes together, with which the run goes on. Each is named on stderr; in
    training the next example takes its place, in evaluation it does not count. A restarted run counts anew."""
    image_key: str | None = None
    """Of a TFDS data set with several images an example, or of rows given in Python: the image's name."""
    label_key: str | None = None
    """Of the label: likewise."""

    @property
    def keys(self) -> tuple[str | None, str | None]:
        """Of the image and of the label."""
        return self.image_key, self.label_key

    def __post_init__(self):
        expect_positive("data.num_threads", self.num_threads)
        expect_positive("data.repeats", self.repeats)
        if self.max_bad < 0:
            raise EcaJaxError(f"data.max_bad: expected 0 or more, got {self.max_bad}")
