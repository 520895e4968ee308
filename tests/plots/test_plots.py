"""The figures show the numbers that they are given: their lines, ticks, labels and legends, and files of them."""

import io
import struct
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib: the extra `plots`")

import matplotlib
from matplotlib.figure import Figure

from eca_jax import cli
from eca_jax.analysis import gate_statistics
from eca_jax.analysis.kernel_sizes import Point
from eca_jax.errors import EcaJaxError
from eca_jax.plots import (
    channel_weights_figure,
    gates_figure,
    kernel_size_figure,
    plot_channel_weights,
    plot_gate_distribution,
    plot_gate_shares,
    plot_gate_spreads,
    plot_kernel_size,
    to_bytes,
)
from eca_jax.plots.channel_weights import expect_classes
from eca_jax.plots.files import check_outputs, to_csv, write_figure

POINTS = [
    Point("1", False, (0.7, 0.8), 0.75, 0.6, 0.9),
    Point("9", False, (0.8, 0.9), 0.85, 0.8, 0.9),
    Point("adaptive", False, (0.9, 0.9), 0.9, 0.85, 0.95),
    Point("se", True, (0.6, 0.7), 0.65, 0.6, 0.7),
    Point("none", True, (0.5, 0.5), 0.5, 0.5, 0.5),
]


@pytest.fixture
def blocks(rng):
    return {name: gate_statistics(rng.uniform(size=(6, 8))) for name in ("layer1.0", "layer2.0", "layer3.0")}


@pytest.fixture
def means(rng):
    return {block: rng.uniform(size=(2, channels)) for block, channels in (("layer1.0", 8), ("layer4.0", 512))}


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def ticks(ax):
    return [tick.get_text() for tick in ax.get_xticklabels()]


def lines(ax):
    """label -> (x, y) of each line that the legend names."""
    return {line.get_label(): line.get_data() for line in ax.lines if not str(line.get_label()).startswith("_")}


def test_kernel_size():
    ax = plot_kernel_size(POINTS, "top-1 (%)", scale=100)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("kernel size $k$", "top-1 (%)")
    assert ticks(ax) == ["1", "9", "adaptive"]
    assert set(texts(ax.get_legend())) == {"one size for all stages", "a size for each stage", "SE", "no attention"}
    one, staged = ax.containers
    np.testing.assert_allclose(one.lines[0].get_xydata(), [[0, 75], [1, 85]])
    np.testing.assert_allclose(staged.lines[0].get_ydata(), [90])
    intervals = [segment[:, 1] for segment in one.lines[2][0].get_segments()]
    np.testing.assert_allclose(intervals, [[60, 90], [80, 90]])
    np.testing.assert_allclose([lines(ax)[name][1] for name in ("SE", "no attention")], [[65, 65], [50, 50]])
    dots = [line.get_ydata() for line in ax.lines if line.get_marker() == "."]
    np.testing.assert_allclose(dots, [[70, 80], [80, 90], [90, 90]])


def test_kernel_size_of_a_single_seed_has_no_interval():
    nan = float("nan")
    figure = kernel_size_figure([Point("3", False, (0.5,), 0.5, nan, nan)], "top-1 (%)")
    assert len(to_bytes(figure, "png")) > 1000


def test_gate_panels(blocks):
    statistics = list(blocks.values())
    ax = plot_gate_distribution(blocks)
    assert ticks(ax) == list(blocks)
    assert ax.get_ylim() == (0, 1)
    np.testing.assert_allclose(lines(ax)["median"][1], [one.median for one in statistics])
    spans = {c.get_label(): [segment[:, 1] for segment in c.get_segments()] for c in ax.collections}
    np.testing.assert_allclose(spans["middle 98%"], [(one.low_percentile, one.high_percentile) for one in statistics])
    np.testing.assert_allclose(spans["middle 50%"], [(one.lower_quartile, one.upper_quartile) for one in statistics])

    shown = lines(plot_gate_shares(blocks))
    np.testing.assert_allclose(shown["within 0.02 of 0.5"][1], [100 * one.near_half for one in statistics])
    np.testing.assert_allclose(shown["below 0.05"][1], [100 * one.near_zero for one in statistics])
    np.testing.assert_allclose(shown["above 0.95"][1], [100 * one.near_one for one in statistics])

    shown = lines(plot_gate_spreads(blocks))
    np.testing.assert_allclose(shown["over images"][1], [one.over_images for one in statistics])
    np.testing.assert_allclose(shown["over channels"][1], [one.over_channels for one in statistics])


def test_gates_figure(blocks):
    figure = gates_figure(blocks)
    assert [ax.get_ylabel() for ax in figure.axes] == ["gate", "share of gates (%)", "spread of gates"]
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "", "block"]
    assert figure.get_figwidth() == 3.25
    assert gates_figure({f"block {i}": blocks["layer1.0"] for i in range(50)}).get_figwidth() == 6.875


def test_channel_weights(means):
    figure = channel_weights_figure({"ECA": means, "SE": means}, list(means), ["cat", "dog"])
    assert [ax.get_title() for ax in figure.axes] == ["ECA\nlayer1.0", "SE\nlayer1.0", "layer4.0", "layer4.0"]
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "", *2 * ["channel index"]]
    assert [ax.get_ylabel() for ax in figure.axes] == 2 * ["mean weight", ""]
    assert texts(figure.legends[0]) == ["cat", "dog"]
    for ax, block in zip(figure.axes, ("layer1.0", "layer1.0", "layer4.0", "layer4.0"), strict=True):
        np.testing.assert_array_equal([line.get_ydata() for line in ax.lines], means[block])
        assert ax.get_xlim() == (0, means[block].shape[1] - 1)


def test_some_of_the_channels(means):
    ax = plot_channel_weights(means["layer1.0"], ["cat", "dog"], channels=range(5, 100))
    assert ax.get_xlim() == (5, 7)
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), list(enumerate(means["layer1.0"][1, 5:], 5)))
    with pytest.raises(EcaJaxError, match=r"^--channels: expected less than 8, which a block has, got 8:9"):
        plot_channel_weights(means["layer1.0"], ["cat", "dog"], channels=range(8, 9))


def test_into_axes_that_are_given(blocks, means):
    figure = Figure()
    axes = list(figure.subplots(2, 2).flat)
    assert plot_kernel_size(POINTS, "top-1 (%)", ax=axes[0]) is axes[0]
    assert plot_channel_weights(means["layer1.0"], ["cat", "dog"], ax=axes[1]) is axes[1]
    assert plot_gate_spreads(blocks, ax=axes[2]) is axes[2]
    assert figure.axes == axes


def pixels(png):
    import PIL.Image

    return np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB"))


def test_files_are_whole_and_the_same_each_time(blocks):
    png, again = (to_bytes(gates_figure(blocks), "png") for _ in range(2))
    assert png == again
    image = pixels(png)
    assert image.shape == (1500, 975, 3)  # 300 dots an inch
    assert 0.01 < np.mean(image.min(axis=2) < 128) < 0.5  # there is something on it, and it is mostly paper
    svg, again = (to_bytes(gates_figure(blocks), "svg") for _ in range(2))
    assert svg == again
    assert ET.fromstring(svg).get("width") == "234pt"
    assert to_bytes(gates_figure(blocks), "pdf").startswith(b"%PDF")
    with pytest.raises(EcaJaxError, match="figure: expected one of the formats png, svg, pdf, got 'jpg'"):
        to_bytes(gates_figure(blocks), "jpg")


def test_settings_of_matplotlib_are_as_they_were(blocks):
    before = dict(matplotlib.rcParams)
    to_bytes(gates_figure(blocks), "svg")
    assert dict(matplotlib.rcParams) == before


def test_written_files(tmp_path, blocks):
    files = [str(tmp_path / "a.png"), str(tmp_path / "b.svg")]
    check_outputs(files)
    written = write_figure(gates_figure(blocks), [{"x": 1, "name": "a, b"}, {"x": 2, "name": "c"}], files)
    assert written == [*files, str(tmp_path / "a.csv")]
    assert (tmp_path / "a.csv").read_text() == 'x,name\n1,"a, b"\n2,c\n'
    width, height = struct.unpack(">II", (tmp_path / "a.png").read_bytes()[16:24])
    assert (width, height) == (975, 1500)
    assert (tmp_path / "b.svg").read_text().startswith("<?xml")
    assert to_csv([{"a": 1.5}]) == b"a\n1.5\n"


def test_outputs_that_cannot_be_written(tmp_path):
    with pytest.raises(EcaJaxError, match=r"^--output a.jpg: expected a name that ends in .png, .svg, .pdf$"):
        check_outputs(["a.jpg"])
    with pytest.raises(EcaJaxError, match=r"there is no directory .*/nowhere to write a.png into"):
        check_outputs([str(tmp_path / "nowhere" / "a.png")])


def test_more_classes_than_colours():
    with pytest.raises(EcaJaxError, match="--classes: expected at most 8, one for each colour, got 9"):
        expect_classes([str(i) for i in range(9)])


def test_no_window_is_needed_and_none_is_opened(blocks):
    gates_figure(blocks)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_without_matplotlib(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("eca_jax.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["figure", "gates"]) == 2
    expected = "error: figures are drawn with matplotlib, which is not here: pip install 'eca_jax[plots]'\n"
    assert capsys.readouterr().err == expected
