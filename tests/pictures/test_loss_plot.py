"""Pictures of losses, where matplotlib is installed."""

import importlib.util
import json

import pytest

from retroflow.errors import MissingExtraError, RetroflowError, UsageError
from retroflow.pictures.loss_plot import plot_losses


def make_run(folder, lines):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


LINES = [
    json.dumps({"step": 1, "train/loss": 3.0}),
    json.dumps({"step": 2, "train/loss": float("nan"), "validation/loss_on": 2.0, "validation/loss_off": 2.5}),
    "torn {",
    json.dumps({"step": 3, "train/loss": 2.0}),
]


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


@pytest.mark.parametrize("ending", ["png", "svg", "PDF"])
def test_a_picture_is_drawn(tmp_path, matplotlib, ending):
    plot_losses([make_run(tmp_path / "a", LINES), make_run(tmp_path / "b", LINES[:1])], tmp_path / f"loss.{ending}")
    assert (tmp_path / f"loss.{ending}").stat().st_size > 1000


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "retroflow\[plot\]"'):
        plot_losses([tmp_path], tmp_path / "loss.png")


@pytest.mark.parametrize(
    ("lines", "output", "error", "message"),
    [
        (LINES, "loss.txt", UsageError, "the name must end in .png, .svg or .pdf"),
        ([], "loss.png", UsageError, "has no metrics.jsonl with a loss"),
        (None, "loss.png", UsageError, "has no metrics.jsonl with a loss"),
        (LINES, "nowhere/loss.png", RetroflowError, "cannot be written"),
    ],
)
def test_what_cannot_be_drawn_is_told(tmp_path, monkeypatch, lines, output, error, message):
    if output.startswith("nowhere"):
        pytest.importorskip("matplotlib")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    run = tmp_path / "a" if lines is None else make_run(tmp_path / "a", lines)
    with pytest.raises(error, match=message):
        plot_losses([run], tmp_path / output)
