"""One global batch, however many processes share it: the same losses."""

import json
from pathlib import Path

import pytest
import torch

from retroflow.components import recipe_schema
from retroflow.recipe import load
from retroflow.training.evaluate import evaluate
from retroflow.training.fit import fit as fit_here
from tests.distributed.runs import TWO, fit, metrics

pytestmark = pytest.mark.timeout(900)  # on a busy machine; a minute on a quiet one


def losses(folder, runs):
    return [line["train/loss"] for line in metrics(folder, runs) if "train/loss" in line]


def estimates(folder, runs):
    return [line["validation/loss_on"] for line in metrics(folder, runs) if "validation/loss_on" in line]


def test_ddp_equals_one_process(folder, monkeypatch):
    monkeypatch.chdir(folder)
    words = ("model.dropout=0.0", "trainer.runs_folder=one")
    fit_here(load(Path("tiny.yaml"), words, schema=recipe_schema()))
    ended = fit(folder, "model.dropout=0.0", *TWO["ddp"], "trainer.runs_folder=two")
    assert ended.code == 0, ended.errors
    assert losses(folder, "two") == pytest.approx(losses(folder, "one"), abs=1e-6)
    assert estimates(folder, "two") == pytest.approx(estimates(folder, "one"), abs=1e-6)
    tokens = [[line.get("train/tokens") for line in metrics(folder, runs)] for runs in ("one", "two")]
    assert tokens[0] == tokens[1]
    # Rank 0 alone prints, and prints the report once.
    assert ended.errors.count("parameters,") == 1 and ended.output.count("report: ") == 1


def test_fsdp_equals_ddp_and_is_evaluated_by_one_process(folder, unbroken, monkeypatch):
    ddp, fsdp = unbroken("ddp"), unbroken("fsdp")
    assert losses(folder, fsdp) == pytest.approx(losses(folder, ddp), abs=1e-6)
    assert estimates(folder, fsdp) == pytest.approx(estimates(folder, ddp), abs=1e-6)

    monkeypatch.chdir(folder)
    run = Path(fsdp, "tiny/0001")
    reported = json.loads((run / "report.json").read_text())["validation"]
    torch.set_num_threads(1)
    assert json.loads(json.dumps(evaluate(run).report.to_json()))["validation"]["on"]["loss"] == reported["on"]["loss"]
