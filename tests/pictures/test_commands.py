"""`retroflow report` and `retroflow inspect` from a terminal: what they print, and each complaint in one line."""

import json
import os
import shutil

import pytest

import retroflow as rf
from retroflow.cli.main import run as command
from retroflow.pictures.report import stored_data
from tests.cli.conftest import retroflow, write_recipe  # noqa: F401  # a fixture

TEXT = "number 3 keeps its notes in the same words as all others do, and more than once in one line"


def test_the_page_of_a_run_and_its_data(attacked, tmp_path, retroflow) -> None:  # noqa: F811
    code, out, _ = retroflow("report", attacked, "--output", tmp_path / "page.html", "--chunks", "0", "--json")
    found = json.loads(out)
    assert code == 0 and found["page"] == str(tmp_path / "page.html") and found["inspector"] is None
    assert found["bytes"] == (tmp_path / "page.html").stat().st_size < 5_000_000
    assert [table["name"] for table in found["tables"]] == ["comparison", "validation"]


def test_a_comparison_without_on_does_not_hide_the_report_s_verdict(attacked, tmp_path) -> None:
    run = tmp_path / "0001"
    shutil.copytree(attacked, run)
    (file,) = run.glob("comparisons/*/comparison.json")
    values = json.loads(file.read_text())
    values["rows"] = [row for row in values["rows"] if row["name"] != "on"]
    file.write_text(json.dumps(values))
    data = stored_data(run)
    assert data["verdict"]["sentence"].startswith("Retrieval ")
    assert data["tables"][0]["name"] == "comparison" and "step" in data["tables"][0]["note"]


def test_plots_are_drawn_beside_the_page(attacked, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    words = ("report", str(attacked), "--output", str(tmp_path / "page.html"), "--chunks", "0")
    assert command([*words, "--plots", str(tmp_path / "plots")]) == 0
    names = {f"{name}.{ending}" for name in ("gains", "curve-retriever", "training") for ending in ("png", "svg")}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == names
    svg = (tmp_path / "plots" / "gains.svg").read_text()
    assert "shuffled" in svg and "onerror" not in svg


def test_inspecting_a_text_gives_the_losses_of_score(attacked, tmp_path, retroflow) -> None:  # noqa: F811
    lm = rf.load(attacked)
    code, out, _ = retroflow("inspect", attacked, TEXT, "--json")
    found = json.loads(out)
    on = [value for entry in found["inspector"]["entries"] for value in entry["on"]]
    off = [value for entry in found["inspector"]["entries"] for value in entry["off"]]
    assert code == 0 and on[0] is None
    assert on[1:] == pytest.approx(lm.score(TEXT).nats, abs=1e-3)
    assert off[1:] == pytest.approx(lm.with_database(None).score(TEXT).nats, abs=1e-3)
    assert "".join(text for entry in found["inspector"]["entries"] for text in entry["tokens"]) == TEXT
    read = found["inspector"]["entries"][1]["neighbours"]
    assert {one["row"] for one in read} == {source.chunk for source in lm.score(TEXT).retrievals[0].sources}
    page = tmp_path / "page.html"
    assert rf.inspect(lm, TEXT, output=page)["bytes"] == page.stat().st_size
    assert rf.inspect(rf.open_run(attacked), TEXT)["loss"] == pytest.approx(found["loss"])
    short = rf.inspect(lm, "keeps its")["inspector"]
    assert not short["retrieval"] and "shorter than a chunk of 8 tokens" in short["about"]


def test_an_inspected_text_is_shown(attacked, tmp_path, show) -> None:
    rf.inspect(attacked, "<img src=x onerror=window.hacked=1> " + TEXT, output=tmp_path / "page.html")
    page, seen = show(tmp_path / "page.html", width=360)
    assert seen == [] and page.evaluate("window.hacked") is None
    page.locator("#chunks .choice").nth(1).click()
    page.locator("#tokens .token").nth(1).hover()
    assert "without: gain" in page.locator("#readout").text_content()
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_an_exported_model_with_a_database(attacked, tmp_path, retroflow) -> None:  # noqa: F811
    model, index = tmp_path / "model", next((attacked.parents[2] / "artifacts").glob("index-*"))
    assert command(["export", str(attacked), str(model)]) == 0
    assert retroflow("inspect", model, TEXT, "--database", index, "--json")[0] == 0
    assert "--database" in retroflow("inspect", model, TEXT, "--json")[2]
    code, out, _ = retroflow("inspect", model, TEXT, "--no-retrieval", "--json")
    assert code == 0 and json.loads(out)["inspector"]["retrieval"] is False


def test_wrong_input_is_one_line(attacked, tmp_path, retroflow) -> None:  # noqa: F811
    (tmp_path / "there.html").write_text("mine")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for words, message in (
        (("report", tmp_path / "nowhere"), "there is no folder"),
        (("report", unfinished), "its training has not ended"),
        (("report", attacked, "--output", tmp_path / "there.html"), "it exists; give a new file"),
        (("report", attacked, "--output", tmp_path / "no" / "page.html"), "there is no folder"),
        (("report", attacked, "--output", tmp_path / "new.html", "--checkpoint", "999"), "999"),
        (("inspect", tmp_path / "nowhere", TEXT), "there is no folder"),
        (("inspect", attacked, "a", "--output", tmp_path / "new.html"), "TEXT is 1 tokens long; allowed: 2 to 4,096"),
        (("inspect", attacked, TEXT, "--output", tmp_path / "there.html"), "it exists; give a new file"),
    ):
        code, out, err = retroflow(*words)
        assert code != 0 and message in err and "Traceback" not in err and not out, (words, err)
        assert len(err.strip().splitlines()) == 1, err
    assert (tmp_path / "there.html").read_text() == "mine" and not (tmp_path / "new.html").exists()
    if os.geteuid():
        unfinished.chmod(0o500)
        assert "cannot be written" in retroflow("inspect", attacked, TEXT, "--output", unfinished / "page.html")[2]


def test_a_run_without_retrieval_has_a_page(tmp_path, retroflow) -> None:  # noqa: F811
    recipe = write_recipe(tmp_path, "plain")
    assert command(["fit", "--recipe", str(recipe), "trainer.retrieval=false"]) == 0
    code, out, _ = retroflow(
        "report", tmp_path / "runs/plain/0001", "--output", tmp_path / "page.html", "--sequences", "2", "--json"
    )
    found = json.loads(out)
    assert code == 0 and found["verdict"]["level"] == "none" and found["inspector"]["retrieval"] is False
    assert found["breakdowns"] == [] and found["inspector"]["entries"][0]["neighbours"] == []
