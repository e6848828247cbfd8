"""`retroflow runs` and `retroflow clean`, as they are typed."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from retroflow.store.sealed_json import read_sealed


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with runs/tiny/0001 and 0002 (unfinished), and their artifacts."""
    shutil.copytree(trained.parents[1], tmp_path / "runs")
    shutil.copytree(trained, tmp_path / "runs" / "tiny" / "0002")
    (tmp_path / "runs" / "tiny" / "0002" / "report.json").unlink()
    shutil.copytree(trained.parents[2] / "tiny" / "artifacts", tmp_path / "artifacts")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_are_listed_with_and_without_a_folder(retroflow, place: Path) -> None:
    code, out, err = retroflow("runs")
    assert (
        code == 0
        and err == ""
        and [line.split()[2] for line in out.splitlines()[1:-1]]
        in (
            ["finished", "unfinished"],
            ["unfinished", "finished"],
        )
    )
    assert out.endswith("How much of a gain overlap explains: retroflow runs report FOLDER\n")
    assert retroflow("runs", "runs/tiny") == retroflow("runs", "list", "runs/tiny") == (0, out, "")
    states = {run["folder"]: run["state"] for run in json.loads(retroflow("runs", "--json")[1])}
    assert states == {"runs/tiny/0001": "finished", "runs/tiny/0002": "unfinished"}
    (place / "none").mkdir()
    assert retroflow("runs", "none") == (0, "", 'no run in "none"; `retroflow fit` starts one\n')


def test_a_report_is_printed_again_and_two_runs_are_compared(retroflow, place: Path) -> None:
    code, out, _ = retroflow("runs", "report", "runs/tiny/0001")
    assert code == 0 and "validation: 2,131 tokens" in out and out.endswith("report: runs/tiny/0001/report.json\n")
    stored = read_sealed(place / "runs" / "tiny" / "0001" / "report.json", remedy="")
    assert json.loads(retroflow("runs", "report", "runs/tiny/0001", "--json")[1]) == stored
    code, out, _ = retroflow("runs", "compare", "runs/tiny/0001", "runs/tiny/0002")
    assert code == 0 and "recipe (what differs): nothing" in out and "One of the two has no report yet" in out
    assert json.loads(retroflow("runs", "compare", "runs/tiny/0001", "runs/tiny/0002", "--json")[1])["recipe"] == {}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["runs", "nowhere"], 2, 'there is no folder "nowhere"'),
        (["runs", "report", "runs/tiny/0002"], 2, "has no report.json"),
        (["runs", "compare", "runs/tiny/0001"], 2, "Missing argument"),
        (["runs", "compare", "runs/tiny/0001", "runs"], 2, '"runs": not a run folder'),
        (["runs", "compare", "runs/tiny/0001", "runs/tiny/0001/run.json"], 2, "not a run folder (it is a file)"),
        (["runs", "report", "runs/tiny/0001/run.json"], 2, "there is no folder"),
        (["clean", "--artifacts", "nowhere"], 2, 'there is no folder "nowhere"'),
        (["clean", "--runs", "nowhere"], 2, 'there is no folder "nowhere"'),
    ],
)
def test_a_mistake_is_one_message(retroflow, place: Path, words, code, message) -> None:
    found, out, err = retroflow(*words)
    assert found == code and out == "" and message in err and err.startswith("error: ") and "Traceback" not in err


def test_cleaning_lists_first_and_removes_with_yes(retroflow, place: Path) -> None:
    assert retroflow("clean")[1] == "nothing to remove\n"
    left = place / "artifacts" / "chunks-0123456789abcdef.partial"
    left.mkdir()
    (left / "file").write_text("x" * 2000)
    code, out, err = retroflow("clean")
    assert code == 0 and "2.0 kB  artifacts/chunks-0123456789abcdef.partial  (unfinished)" in out
    assert out.endswith("2.0 kB  in total; --yes removes them\n") and left.exists()
    assert err == "runs in runs: 2; artifacts that they need: 4\n"
    listed = json.loads(retroflow("clean", "--json")[1])
    assert [each["path"] for each in listed["leftovers"]] == [f"artifacts/{left.name}"] and listed["removed"] == []
    code, out, _ = retroflow("clean", "--yes")
    assert code == 0 and out.endswith("2.0 kB  in total, removed\n") and not left.exists()
    assert retroflow("generate", "runs/tiny/0001", "--prompt", "Notes", "--max-new-tokens", "2")[0] == 0


def test_losses_are_drawn_or_the_extra_is_named(retroflow, place: Path) -> None:
    code, out, err = retroflow("runs", "plot", "runs/tiny/0001", "runs/tiny/0002", "--output", "losses.png")
    if importlib.util.find_spec("matplotlib") is None:
        assert (code, out) == (4, "") and 'pip install "retroflow[plot]"' in err
    else:
        assert (code, out, err) == (0, "losses.png\n", "")
        assert (place / "losses.png").read_bytes().startswith(b"\x89PNG")
