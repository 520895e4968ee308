"""What a classifier got right and wrong, from its logits and the labels."""

import numpy as np

from eca_jax.errors import EcaJaxError, expect_at_least


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """How many images of each class (rows) were given each class (columns).

    Args:
      labels: (n), the class of each image, from 0.
      predictions: (n), the class that each was given.
      num_classes: k.

    Returns:
      (k, k), int64; its diagonal has what was right, its sum is n.

    Raises:
      EcaJaxError: the two have other shapes or types, or a number is no class.

    Example:
      >>> import numpy as np
      >>> from eca_jax.analysis import confusion_matrix
      >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), num_classes=2)
      array([[1, 1],
             [0, 1]])
    """
    labels, predictions = _numbers("labels", labels, num_classes), _numbers("predictions", predictions, num_classes)
    if labels.shape != predictions.shape:
        raise EcaJaxError(f"predictions: expected {len(labels)}, one for each label, got {len(predictions)}")
    return np.bincount(labels * num_classes + predictions, minlength=num_classes**2).reshape(num_classes, num_classes)


def most_certain(logits: np.ndarray, count: int = 9, *, labels: np.ndarray | None = None) -> np.ndarray:
    """The images to whose class the network gives the highest probability, the highest first.

    Args:
      logits: (n, k).
      count: at most so many.
      labels: (n,), the class of each image whose probability counts; None is the class that the network gives it.

    Returns:
      Numbers of images, int64, (min(n, count),); of images with the same probability the first come first.

    Raises:
      EcaJaxError: the logits are not finite or have another shape, or a label is no class.

    Example:
      >>> import numpy as np
      >>> from eca_jax.analysis import most_certain
      >>> logits = np.array([[0.0, 1.0], [5.0, 0.0], [0.0, 3.0]])  # of three images
      >>> most_certain(logits, 2)
      array([1, 2])
    """
    return np.argsort(-_log_probabilities(logits, labels), kind="stable")[: _count(count)]


def least_certain(logits: np.ndarray, count: int = 9, *, labels: np.ndarray | None = None) -> np.ndarray:
    """The images to whose class the network gives the lowest probability, the lowest first.

    With the true `labels` these are the worst mistakes; without, the images between which classes it wavers.

    Args:
      logits: (n, k).
      count: at most so many.
      labels: (n,), as of `most_certain`.

    Returns:
      Numbers of images, int64, (min(n, count),); of images with the same probability the first come first.

    Raises:
      EcaJaxError: as `most_certain`.

    Example:
      >>> import numpy as np
      >>> from eca_jax.analysis import least_certain
      >>> logits = np.array([[0.0, 1.0], [5.0, 0.0], [0.0, 3.0]])  # of three images
      >>> least_certain(logits, 1)
      array([0])
      >>> least_certain(logits, 1, labels=np.array([1, 1, 1]))  # the worst mistake
      array([1])
    """
    return np.argsort(_log_probabilities(logits, labels), kind="stable")[: _count(count)]


def _count(count: int) -> int:
    expect_at_least("count", count)
    return count


def _log_probabilities(logits: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Of each image's class, (n), float64, exact also where the probability is almost 1."""
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2:
        raise EcaJaxError(f"logits: expected an array (images, classes), got the shape {logits.shape}")
    if not np.isfinite(logits).all():
        raise EcaJaxError("logits: some are not finite numbers: the weights are damaged, or of a training that failed")
    chosen = logits.argmax(axis=1) if labels is None else _numbers("labels", labels, logits.shape[1])
    if len(chosen) != len(logits):
        raise EcaJaxError(f"labels: expected {len(logits)}, one for each image, got {len(chosen)}")
    return -np.logaddexp.reduce(logits - np.take_along_axis(logits, chosen[:, None], axis=1), axis=1)


def _numbers(name: str, values: np.ndarray, num_classes: int) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise EcaJaxError(f"{name}: expected whole numbers (n), got {values.dtype} of the shape {values.shape}")
    if len(values) and not (values.min() >= 0 and values.max() < num_classes):
        strange = next(value for value in values if not 0 <= value < num_classes)
        raise EcaJaxError(f"{name}: expected numbers from 0 to {num_classes - 1}, got {strange}")
    return values.astype(np.int64)
