"""Confusion matrices against scikit-learn's; certain images and statistics of classes by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix as of_sklearn

from eca_jax.analysis import class_statistics, confusion_matrix, least_certain, most_certain
from eca_jax.errors import EcaJaxError


def test_confusion_matrix(rng):
    labels, predictions = rng.integers(0, 4, size=(2, 100))  # class 4 has no image and is never predicted
    found = confusion_matrix(labels, predictions, 5)
    np.testing.assert_array_equal(found, of_sklearn(labels, predictions, labels=range(5)))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(confusion_matrix(np.int32([0, 1]), np.uint8([1, 1]), 2), [[0, 1], [0, 1]])


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 3], [0, 1], r"^labels: expected numbers from 0 to 2, got 3"),
        ([0, 1], [-1, 0], r"^predictions: expected numbers from 0 to 2, got -1"),
        ([0, 1], [0.0, 1.0], r"^predictions: expected whole numbers \(n\), got float64 of the shape \(2,\)"),
        ([0, 1], [0], r"^predictions: expected 2, one for each label, got 1"),
    ],
)
def test_what_makes_no_confusion_matrix_is_refused(labels, predictions, message):
    with pytest.raises(EcaJaxError, match=message):
        confusion_matrix(np.array(labels), np.array(predictions), 3)


LOGITS = np.float32([[2, 0, 1], [0, 40, 0], [1, 1, 1.1], [0, 90, 0], [5, 0, 0]])


def probability(row, label):
    return math.exp(row[label]) / sum(math.exp(logit) for logit in row)


def test_certain_images_by_hand():
    own = [probability(row.tolist(), int(row.argmax())) for row in LOGITS]
    assert own[1] == own[3] == 1  # in float64 too: the logits still tell them apart
    assert most_certain(LOGITS).tolist() == [3, 1, 4, 0, 2]
    assert least_certain(LOGITS, 2).tolist() == [2, 0]
    labels = np.array([1, 1, 0, 0, 0])
    of_labels = [probability(row.tolist(), label) for row, label in zip(LOGITS, labels, strict=True)]
    assert least_certain(LOGITS, labels=labels).tolist() == np.argsort(of_labels).tolist()
    assert most_certain(LOGITS, 3, labels=labels).tolist() == np.argsort(of_labels)[::-1][:3].tolist()


def test_images_without_an_order_are_refused():
    with pytest.raises(EcaJaxError, match=r"^logits: some are not finite"):
        most_certain(np.array([[np.nan, 0]]))
    with pytest.raises(EcaJaxError, match=r"^logits: expected an array \(images, classes\), got the shape \(3,\)"):
        most_certain(np.zeros(3))
    with pytest.raises(EcaJaxError, match=r"^labels: expected 5, one for each image, got 2"):
        least_certain(LOGITS, labels=np.array([0, 1]))
    with pytest.raises(EcaJaxError, match=r"^count: expected 1 or more, got 0"):
        least_certain(LOGITS, 0)


def test_statistics_of_classes_by_hand():
    gates = np.float32([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.6]])
    found = class_statistics(gates, np.array([7, 3, 7, 7]))
    assert found.classes.tolist() == [3, 7]
    assert found.counts.tolist() == [1, 3]
    np.testing.assert_allclose(found.means, [[0.3, 0.4], [1.3 / 3, 1.4 / 3]], atol=1e-7)
    deviations = [math.sqrt(sum((x - sum(of) / 3) ** 2 for x in of) / 3) for of in ((0.1, 0.5, 0.7), (0.2, 0.6, 0.6))]
    np.testing.assert_allclose(found.deviations, [[0, 0], deviations], atol=1e-7)
    # What lies between classes and what lies within them is all that there is.
    np.testing.assert_allclose(found.between + found.within, np.var(np.float64(gates), axis=0), atol=1e-12)
    share = sum(3 / 16 * (mean - first) ** 2 for first, mean in ((0.3, 1.3 / 3), (0.4, 1.4 / 3)))
    assert found.share_between == pytest.approx(share / np.var(gates, axis=0, dtype=float).sum(), rel=1e-5)


def test_shares_at_their_ends():
    labels = np.array([0, 0, 1, 1])
    assert class_statistics(np.array([[1.0], [1.0], [2.0], [2.0]]), labels).share_between == 1
    assert class_statistics(np.array([[1.0], [2.0], [1.0], [2.0]]), labels).share_between == 0
    assert class_statistics(np.ones((4, 3)), labels).share_between == 0


def test_some_of_the_classes_and_errors():
    gates, labels = np.array([[1.0], [2.0], [4.0]]), np.array([0, 1, 2])
    found = class_statistics(gates, labels, np.array([2, 0]))
    assert found.means.tolist() == [[4], [1]]
    with pytest.raises(EcaJaxError, match="there is no image of the class 5"):
        class_statistics(gates, labels, np.array([5]))
    with pytest.raises(EcaJaxError, match=r"a label for each image, got the shapes \(3, 1\) and \(2,\)"):
        class_statistics(gates, labels[:2])
    with pytest.raises(EcaJaxError, match=r"^values: some are not finite"):
        class_statistics(gates * np.nan, labels)
