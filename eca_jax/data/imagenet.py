"""The names of ImageNet's classes, the classes of ImageNet-A and ImageNet-R, and the number of images."""

import functools
import importlib.resources

from eca_jax.errors import printable

CLASSES = 1000
TRAINING_EXAMPLES = 1_281_167


@functools.cache
def synsets() -> dict[str, str]:
    """WordNet identifier -> English name, in the order of the labels: {'n01440764': 'tench', ...}."""
    text = importlib.resources.files("eca_jax.data").joinpath("imagenet_classes.txt").read_text()
    return dict(line.split(" ", 1) for line in text.splitlines())


@functools.cache
def candidates(data_set: str) -> tuple[int, ...] | None:
    """The labels that a prediction on a TFDS data set may have; None means all classes of the model.

    ImageNet-A and ImageNet-R each have images of 200 of the 1000 classes. In their papers (Hendrycks et al.,
    arXiv:1907.07174 and 2006.16241), the model chooses only among these.
    """
    if data_set not in ("imagenet_a", "imagenet_r"):
        return None
    numbers = {name: i for i, name in enumerate(synsets())}
    text = importlib.resources.files("eca_jax.data").joinpath(f"{data_set}.txt").read_text()
    return tuple(numbers[name] for name in text.split())


def class_names(num_classes: int) -> tuple[str, ...]:
    """Class names for weights that have none: ImageNet's if there are 1000 classes, else the numbers of the labels."""
    return tuple(synsets().values()) if num_classes == CLASSES else tuple(str(i) for i in range(num_classes))


def readable(name: str) -> str:
    """'n01440764' -> 'tench'; other names are unchanged, except that characters that cannot be printed are escaped."""
    return printable(synsets().get(name, name))
