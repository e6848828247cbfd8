"""Two runs beside each other."""

import json

import pytest

from retroflow.errors import DamagedDataError, GenerationError
from retroflow.runs.comparison import compare
from retroflow.runs.folder import RunFolder, write_description, write_report


def make_run(folder, *, k, loss, tokens=100, num_bytes=400, chunks="c", report=True):
    folder.mkdir()
    values = {"seed": 1, "neighbours": {"k": k}, "data": {"artifacts_folder": "artifacts"}}
    prints = {"chunks": chunks, "neighbours": f"n{k}"}
    identity = {"recipe": "", "values": values, "fingerprints": prints}
    write_description(RunFolder(folder), identity, {})
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 6, "train/loss": loss}) + "\n")
    if report:
        measured = {"loss": loss, "bits_per_byte": loss / 2}
        values = {"validation": {"on": measured, "off": measured}, "gain_over_off": 0.0, "predicted_tokens": tokens}
        report = values | {"bytes": num_bytes, "training": {"steps": 6, "seed": k}}
        write_report(folder / "report.json", report)
    return folder


def test_what_differs_is_shown_and_what_was_measured(tmp_path):
    first, second = make_run(tmp_path / "a", k=1, loss=2.0), make_run(tmp_path / "b", k=2, loss=1.5)
    found = compare(first, second)
    assert found.recipe == {"neighbours.k": (1, 2)} and found.artifacts == {"neighbours": ("n1", "n2")}
    assert found.training == {"seed": (1, 2)} and found.metrics["train/loss"] == (2.0, 1.5)
    assert found.validation["bits/byte on"] == (1.0, 0.75) and found.notes == ()
    lines = found.lines()
    assert lines[0].split() == [str(first), str(second)]
    assert "neighbours.k" in lines[2] and lines[2].split()[1:] == ["1", "2"]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["recipe"] == {"neighbours.k": [1, 2]}


def test_gains_stand_beside_their_overlap_or_not_at_all(tmp_path):
    first, second = make_run(tmp_path / "a", k=1, loss=2.0), make_run(tmp_path / "b", k=2, loss=1.5)
    assert "gain over off" not in compare(first, second).validation
    stated = RunFolder(second).stored_report() | {"overlap_statement": "Overlap: 90.0% of 10 chunks."}
    write_report(second / "report.json", {key: value for key, value in stated.items() if key != "sha256"})
    found = compare(first, second)
    assert found.validation["gain over off"] == (None, 0.0)
    assert found.notes == (f"{second}: Overlap: 90.0% of 10 chunks.",)


def test_equal_runs_differ_in_nothing(tmp_path):
    found = compare(run := make_run(tmp_path / "a", k=1, loss=2.0), run)
    assert found.lines()[1:4] == [
        "recipe (what differs): nothing",
        "artifacts (what differs): nothing",
        "training (what differs): nothing",
    ]
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("other", "note"),
    [
        ({"num_bytes": 401}, "measured on different validation text"),
        ({"tokens": 101}, "compare bits per byte, not losses per token"),
        ({"chunks": "d"}, "measured on different chunks"),
        ({"report": False}, "One of the two has no report yet"),
    ],
)
def test_numbers_that_cannot_be_compared_are_noted(tmp_path, other, note):
    found = compare(make_run(tmp_path / "a", k=1, loss=2.0), make_run(tmp_path / "b", k=1, loss=2.0, **other))
    assert len(found.notes) == 1 and note in found.notes[0] and found.lines()[-1] == found.notes[0]


def test_what_is_no_run_or_damaged_is_told(tmp_path):
    run = make_run(tmp_path / "a", k=1, loss=2.0)
    with pytest.raises(GenerationError, match=r"not a run folder \(it has no run.json\)"):
        compare(run, tmp_path)
    (run / "report.json").write_text((run / "report.json").read_text().replace("2.0", "2.1"))
    with pytest.raises(DamagedDataError, match='report.json": it was changed after it was written'):
        compare(run, run)


@pytest.mark.parametrize(("name", "there", "here"), [("run.json", '"k": 1', '"k": 2'), ("report.json", "2.0", "2.1")])
def test_a_changed_digit_is_not_compared(tmp_path, name, there, here):
    first, second = make_run(tmp_path / "a", k=1, loss=2.0), make_run(tmp_path / "b", k=1, loss=2.0)
    content = (second / name).read_text()
    assert there in content
    (second / name).write_text(content.replace(there, here, 1))
    with pytest.raises(DamagedDataError, match=f"{name}.: it was changed after it was written"):
        compare(first, second)
