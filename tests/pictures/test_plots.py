"""Curves are drawn with their intervals, names and notes, whatever they are over."""

import pytest

from retroflow.errors import UsageError
from retroflow.pictures.plots import check_plot, plot_curve


def point(x, on=2.0, off=2.2, **changes):
    gain = off - on
    values = {"x": x, "label": str(x), "on": on, "off": off, "on_interval": [on - 0.1, on + 0.1], "gain": gain}
    return values | {"gain_interval": [gain - 0.05, gain + 0.05], "recall": 0.97} | changes


CURVES = {
    "k": [point(1), point(2), point(40)],
    "size": [point(0.01), point(0.1), point(1.0)],
    "retriever": [point(0, label="exact"), point(1, label="random", recall=None)],
    "step": [point(16), point(64)],
    "alpha": [point(0.125), point(1.0)],
    "training_tokens": [
        {"x": 10_000.0, "series": "a", "on": 3.0, "off": 3.1},
        {"x": 20_000.0, "series": "a", "on": 2.5, "off": 2.9},
        {"x": 20_000.0, "series": "b", "on": None, "off": 2.8},
    ],
}


@pytest.mark.parametrize("over", CURVES)
def test_every_curve_is_drawn_with_its_words(tmp_path, over):
    pytest.importorskip("matplotlib")
    curve = {"over": over, "points": CURVES[over], "note": "4 of 133 sequences"}
    plot_curve(curve, tmp_path / "curve.svg")
    drawn = (tmp_path / "curve.svg").read_text()
    for words in ("4 of 133 sequences", "without", "gain (nats per token)" if "gain" in CURVES[over][0] else "loss"):
        assert f"<!-- {words}" in drawn or words in drawn, words


def test_a_picture_needs_a_known_ending(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(UsageError, match="must end in .png, .svg or .pdf"):
        check_plot(tmp_path / "curve.gif")
