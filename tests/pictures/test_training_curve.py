"""Runs are compared where they have seen as many tokens, and where they were trained for as long."""

import json

import pytest

import retroflow as rf
from retroflow.errors import UsageError
from retroflow.runs.folder import RunFolder, write_description, write_report

STATEMENT = "Overlap: 90.0% of 10 chunks."


def make_run(folder, *, retrieval, losses, tokens=100, seconds=2.0, parameters=1000, chunks="c", report=True):
    """Validation at steps 10, 20, ...; each step has `tokens` and takes `seconds`."""
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    values = {
        "trainer": {"validation_batches": 2, "eval_batch_size": 4, "max_steps": 10 * len(losses)},
        "data": {"artifacts_folder": "artifacts", "sequence_chunks": 8},
    }
    training = {"retrieval": retrieval, "num_parameters": parameters}
    identity = {"recipe": "seed: 1\n", "values": values, "fingerprints": {"chunks": chunks}, "training": training}
    write_description(run, identity, {})
    lines, speed = [], []
    for number, loss in enumerate(losses, 1):
        lines.append({"step": 10 * number, "train/loss": loss, "train/tokens": 10 * number * tokens})
        found = {"validation/loss_off": loss + 0.1 * retrieval} | ({"validation/loss_on": loss} if retrieval else {})
        lines.append({"step": 10 * number, **found})
        speed.append({"step": 10 * number, "seconds": 10 * seconds})
    for name, content in (("metrics.jsonl", lines), ("throughput.jsonl", speed)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in content))
    if report:
        write_report(run.report, {"overlap_statement": STATEMENT})
    return folder


def test_gains_are_at_equal_tokens_and_at_equal_seconds(tmp_path):
    reading = make_run(tmp_path / "a", retrieval=True, losses=[4.0, 3.0, 2.0], seconds=4.0, parameters=1300)
    alone = make_run(tmp_path / "b", retrieval=False, losses=[4.2, 3.4, 3.0, 2.8])
    tokens, seconds = rf.training_curves(reading, alone, output=tmp_path / "curves")
    (equal,) = tokens.to_json()["equal"]
    assert (equal["tokens"], equal["loss_with_retrieval"], equal["loss_without"]) == (3000, 2.0, 3.0)
    assert equal["parameters"] == [1300, 1000] and not equal["equal_parameters"]
    (equal,) = seconds.to_json()["equal"]  # 80 s: two of the steps with retrieval, on the line; all without
    assert equal["seconds"] == 80.0 and equal["loss_without"] == 2.8 and equal["loss_with_retrieval"] == 3.0
    assert equal["gain"] == pytest.approx(-0.2) and "1.30 times as many parameters" in seconds.note
    assert [point["x"] for point in seconds.points][:3] == [40.0, 80.0, 120.0] and STATEMENT in seconds.note
    assert tokens.points[0]["off"] == 4.1 and tokens.points[3]["on"] is None
    stored = json.loads((tmp_path / "curves" / "training_tokens.json").read_text())
    assert stored["over"] == "training_tokens" and stored["unit"] == "tokens"


def test_without_an_overlap_statement_no_gain_is_stated(tmp_path):
    reading = make_run(tmp_path / "a", retrieval=True, losses=[4.0, 3.0], report=False)
    alone = make_run(tmp_path / "b", retrieval=False, losses=[4.2, 3.4], parameters=1005)
    for made in rf.training_curves(reading, alone):
        assert made.to_json()["equal"] == [] and "nats per token below" not in made.note
        assert "so no gain is shown" in made.note and made.file.parent == reading / "curves"


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    good = make_run(tmp_path / "a", retrieval=True, losses=[4.0])
    other = make_run(tmp_path / "b", retrieval=False, losses=[4.0], chunks="d")
    with pytest.raises(UsageError, match="have different chunks: their losses are of different text"):
        rf.training_curves(good, other)
    with pytest.raises(UsageError, match="not a run folder; give the folders of runs"):
        rf.training_curves(tmp_path / "nowhere")
    (good / "metrics.jsonl").write_text("")
    with pytest.raises(UsageError, match="no validation loss was measured .* trainer.validate_every=N"):
        rf.training_curves(good)
    with pytest.raises(UsageError, match="no runs given"):
        rf.training_curves()
