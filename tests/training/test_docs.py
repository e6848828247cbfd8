"""What the agent of docs/sweep.yaml makes is accepted."""

import itertools
from pathlib import Path

import pytest
import yaml

from retroflow.components import recipe_schema
from retroflow.recipe import load

ROOT = Path(__file__).resolve().parents[2]


def test_every_point_of_the_sweep_is_a_command_line_that_is_accepted(monkeypatch):
    sweeps = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load((ROOT / "docs" / "sweep.yaml").read_text(encoding="utf-8"))
    names = list(sweep["parameters"])
    points = list(itertools.product(*(sweep["parameters"][name]["values"] for name in names)))
    assert len(points) == 24
    for point in points:
        arguments = sweeps.create_sweep_command_args(
            {"args": {name: {"value": value} for name, value in zip(names, point, strict=True)}}
        )
        before = sweep["command"][:-1]
        assert sweep["command"][-1] == "${args_no_hyphens}"
        program, command, flag, recipe, *overrides = [*before, *arguments["args_no_hyphens"]]
        assert (program, command, flag) == ("retroflow", "fit", "--recipe")
        loaded = load(Path(recipe), overrides, schema=recipe_schema())
        assert loaded.values["neighbours"]["k"] == point[0]
        assert loaded.values["model"]["smear"] == (point[3] == "true")
        assert loaded.values["tracker"]["name"] == "wandb"


def test_the_sweeps_metric_is_one_that_a_run_logs():
    from tests.evaluation.test_report import make_report

    sweep = yaml.safe_load((ROOT / "docs" / "sweep.yaml").read_text(encoding="utf-8"))
    assert sweep["metric"]["name"] in make_report().headline()
