"""Gates or activations by class."""

import numpy as np

from eca_jax.errors import EcaJaxError


def class_means(gates: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The average gate of each channel over the images of each class.

    Args:
      gates: (n, c), of n images.
      labels: (n), the class of each image.
      classes: (k), the classes that are asked for.

    Returns:
      (k, c), float64.

    Raises:
      EcaJaxError: there is no image of one of the classes.
    """
    gates, means = np.asarray(gates, np.float64), []
    for c in classes:
        of_class = gates[labels == c]
        if not len(of_class):
            raise EcaJaxError(f"there is no image of the class {c}")
        means.append(of_class.mean(axis=0))
    return np.stack(means)
