"""The command lines in docs/tracking.md and docs/multi-node.md are accepted, and so is what a sweep's agent makes."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
import yaml

from retroflow.cli.fit import split_words
from retroflow.cli.main import build_app
from retroflow.components import recipe_schema
from retroflow.planning.options import TrainerOptions
from retroflow.planning.placement import plan_placement
from retroflow.recipe import load

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("tracking.md", "multi-node.md", "training.md")
FLAGS = {"--dry-run", "--json", "--resume"}


def command_lines():
    """Every `retroflow fit` and `retroflow prepare` in a code block, also behind srun and torchrun."""
    for page in PAGES:
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("&&"):
                    if match := re.search(r"retroflow ((?:fit|prepare) .*--recipe.*)", part):
                        yield pytest.param(match[1], id=f"{page}: {match[1][:60]}")


@pytest.mark.parametrize("line", list(command_lines()))
def test_a_command_line_is_accepted(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, *words = shlex.split(line, comments=True)
    assert build_app([command]).registered_commands
    recipe = words.pop(words.index("--recipe") + 1)
    resume = "--resume" in words
    rest = [word for word in words if word not in {"--recipe", *FLAGS}]
    assert not [word for word in rest if word.startswith("-")]
    overrides, _ = split_words(rest, resume=resume) if resume else (rest, None)
    loaded = load(Path(recipe), overrides, schema=recipe_schema())
    plan_placement(TrainerOptions(**loaded.section("trainer")))


def test_there_are_lines_to_check():
    assert len(list(command_lines())) >= 9


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
