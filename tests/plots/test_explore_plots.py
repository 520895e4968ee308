"""Histories, confusion matrices, images, heat maps and activation maps: the artists have the numbers they are given."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib: the extra `plots`")

from matplotlib.figure import Figure

from eca_jax.errors import EcaJaxError
from eca_jax.plots import (
    history_figure,
    plot_activation_maps,
    plot_confusion_matrix,
    plot_heat_map,
    plot_history,
    plot_images,
    to_bytes,
)

HISTORY = {
    "train": {
        "step": np.array([5, 10, 15]),
        "epoch": np.array([0.5, 1.0, 1.5]),
        "lr": np.array([0.1, 0.05, 0.0]),
        "loss": np.array([2.5, np.nan, 1.5]),
        "top1": np.array([0.25, 0.5, 0.75]),
    },
    "eval": {
        "step": np.array([10]),
        "epoch": np.array([1.0]),
        "loss": np.array([2.0]),
        "top1": np.array([0.5]),
        "count": np.array([40.0]),
    },
}


def lines(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def test_history():
    ax = plot_history(HISTORY)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")
    assert list(lines(ax)) == ["training", "held-out"]
    np.testing.assert_array_equal(lines(ax)["training"], [[0.5, 2.5], [1, np.nan], [1.5, 1.5]])
    np.testing.assert_array_equal(lines(ax)["held-out"], [[1, 2]])
    ax = plot_history(HISTORY, "top1")
    assert ax.get_ylabel() == "top-1 (%)"
    np.testing.assert_allclose(lines(ax)["training"][:, 1], [25, 50, 75])
    ax = plot_history(HISTORY, "lr")
    assert list(lines(ax)) == ["training"]
    assert ax.get_legend() is None
    with pytest.raises(EcaJaxError, match=r"^column: the history has no 'topone'\. Did you mean top1\?"):
        plot_history(HISTORY, "topone")


def test_history_figure():
    figure = history_figure(HISTORY)
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss", "top-1 (%)", "learning rate"]
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "", "epoch"]
    begun = {"train": {name: values[:1] for name, values in HISTORY["train"].items()}, "eval": {}}
    assert [ax.get_ylabel() for ax in history_figure(begun).axes] == ["loss", "learning rate"]
    with pytest.raises(EcaJaxError, match=r"^history: it has no row yet"):
        history_figure({"train": {}, "eval": {}})


def test_confusion_matrix():
    ax = plot_confusion_matrix(np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]), ["cat", "dog", "owl"])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")
    np.testing.assert_array_equal(ax.images[0].get_array(), [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]])
    assert {text.get_position(): text.get_text() for text in ax.texts} == {(0, 0): "3", (1, 0): "1", (1, 1): "2"}
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["cat", "dog", "owl"]
    many = plot_confusion_matrix(np.eye(30, dtype=int), [str(i) for i in range(30)])
    assert not many.texts
    with pytest.raises(EcaJaxError, match=r"^matrix: expected a row and a column for each of 2 names, got \(3, 3\)"):
        plot_confusion_matrix(np.eye(3), ["cat", "dog"])


def test_images_in_rows(rng):
    images = [rng.uniform(size=(4, 4, 3)), rng.integers(0, 256, (4, 8, 3), np.uint8), rng.uniform(size=(5, 5))]
    ax = plot_images(images, ["a", "b\nnot c", "d"], columns=2)
    for shown, image in zip(ax.images, images, strict=True):
        np.testing.assert_array_equal(shown.get_array(), image)
    assert list(ax.images[0].get_extent()) == [0, 1, 1, 0]
    assert ax.images[1].get_extent()[0] > 1  # to the right of the first
    assert ax.images[2].get_extent()[3] > 1  # below it
    left, right, bottom, top = ax.images[1].get_extent()
    assert (right - left) / (bottom - top) == pytest.approx(2)
    assert [text.get_text() for text in ax.texts] == ["a", "b\nnot c", "d"]


def test_a_heat_map_over_an_image(rng):
    heat, image = rng.uniform(size=(2, 3)), rng.uniform(size=(20, 30, 3))
    under, over = plot_heat_map(heat, image, opacity=0.4).images
    np.testing.assert_array_equal(under.get_array(), image)
    np.testing.assert_array_equal(over.get_array(), heat)
    assert under.get_extent() == over.get_extent() == [0, 30, 20, 0]
    assert over.get_alpha() == 0.4
    assert over.get_clim() == (0, heat.max())
    (alone,) = plot_heat_map(heat - 0.9).images
    assert alone.get_clim() == (-abs(heat - 0.9).max(), abs(heat - 0.9).max())
    assert plot_heat_map(np.zeros((2, 2))).images[0].get_clim() == (0, 1)


def test_activation_maps(rng):
    maps = rng.normal(size=(4, 6, 5))
    (shown,) = plot_activation_maps(maps, columns=3).images
    picture = np.ma.filled(shown.get_array(), np.nan)
    assert picture.shape == (4 + 1 + 4, 3 * 6 + 2)
    np.testing.assert_array_equal(picture[:4, 7:13], maps[..., 1])
    np.testing.assert_array_equal(picture[5:, :6], maps[..., 3])
    assert np.isnan(picture[4]).all()
    assert np.isnan(picture[5:, 14:]).all()  # there is no sixth
    np.testing.assert_allclose(shown.get_clim(), (maps.min(), maps.max()))


def test_what_is_no_picture_is_refused(rng):
    with pytest.raises(EcaJaxError, match=r"^image: expected uint8, or floats from 0 to 1, got float64 .*denormalise"):
        plot_images([rng.normal(size=(4, 4, 3))])
    with pytest.raises(EcaJaxError, match=r"^image: expected \(h, w, 3\) or \(h, w\), got the shape \(1, 4, 4, 3\)"):
        plot_images([np.zeros((1, 4, 4, 3))])
    with pytest.raises(EcaJaxError, match=r"^images: expected at least one, got none"):
        plot_images([])
    with pytest.raises(EcaJaxError, match=r"^titles: expected one for each of 2 images, got 1"):
        plot_images(np.zeros((2, 4, 4)), ["a"])
    with pytest.raises(EcaJaxError, match=r"^heat: expected finite numbers \(h, w\), got .* \(4, 4, 3\)"):
        plot_heat_map(np.zeros((4, 4, 3)))
    with pytest.raises(EcaJaxError, match=r"^maps: expected those of one image, \(h, w, c\), got the shape \(2, 2\)"):
        plot_activation_maps(np.zeros((2, 2)))


def test_into_axes_that_are_given():
    figure = Figure()
    axes = list(figure.subplots(1, 5).flat)
    assert plot_history(HISTORY, ax=axes[0]) is axes[0]
    assert plot_confusion_matrix(np.eye(2), ["a", "b"], ax=axes[1]) is axes[1]
    assert plot_images(np.zeros((2, 4, 4)), ax=axes[2]) is axes[2]
    assert plot_heat_map(np.ones((2, 2)), np.zeros((4, 4)), ax=axes[3]) is axes[3]
    assert plot_activation_maps(np.ones((2, 2, 3)), ax=axes[4]) is axes[4]
    assert figure.axes == axes
    assert len(to_bytes(figure, "png")) > 5000
