"""`prepare --dry-run`: rates that are measured here, and the arithmetic from them; nothing is made."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from retroflow.cli.main import run
from retroflow.errors import RetroflowError
from retroflow.planning import preparation
from retroflow.planning.preparation import Rates, _all_hours, _divide, plan_preparation
from retroflow.protocols import IndexOutline
from retroflow.recipe import Recipe
from tests.pipeline.recipes import recipe_file, small_recipe


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "SECONDS", 0.05)
    monkeypatch.setattr(preparation, "INDEX_ROWS", 400)
    monkeypatch.setattr(preparation, "QUERIES", 20)


def outline(compared: float, to_add: float) -> IndexOutline:
    return IndexOutline(kind="", building=0, searching=0, disk=0, compared=compared, compared_to_add=to_add)


def test_hours_follow_from_rates_and_from_what_is_compared() -> None:
    rates = Rates(1_000.0, 100.0, 50_000.0, 500.0, outline(compared=2_000, to_add=512))
    hours = _all_hours(3_600_000, rates, outline(compared=8_000, to_add=1_024), has_embeddings=True)
    assert hours == {"chunks": 1.0, "embeddings": 10.0, "index": 0.04, "neighbours": 8.0}
    unknown = _all_hours(3_600_000, Rates(1_000.0), None, has_embeddings=False)
    assert unknown == {"chunks": 1.0, "index": None, "neighbours": None}


def test_a_plan_measures_every_stage_and_makes_nothing(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    plan = plan_preparation(recipe)
    assert sorted(tmp_path.rglob("*")) == before
    assert all(getattr(plan.rates, stage) > 0 for stage in preparation.STAGES)
    million, billion = plan.estimates
    assert (million.count, billion.count) == (10**6, 10**9)
    assert all(hours > 0 for hours in million.hours.values() if hours is not None)
    # Flat: a search is as long as the index, for as many more chunks; all else grows with the chunks.
    assert billion.hours["neighbours"] == pytest.approx(10**6 * (million.hours["neighbours"] or 0))
    assert billion.hours["embeddings"] == pytest.approx(10**3 * (million.hours["embeddings"] or 0))
    assert million.disk["embeddings"] == 10**6 * 32 * 2 and million.disk["chunks"] == 10**6 * (16 * 2 + 14)
    lines = plan.lines()
    assert lines[0].startswith("prepared   nothing; to be made: chunks, embeddings, index, neighbours")
    assert [line.split()[0] for line in lines] == [
        "prepared",
        "corpus",
        "measured",
        "estimate",
        "estimate",
        "shares",
        "nothing",
    ]
    assert lines[3].startswith("estimate   1,000,000 chunks: chunks ") and "index Flat, 0.1 GiB of memory" in lines[3]


def test_shards_divide_the_hours_but_for_reading_and_an_index_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    hours = {"chunks": 5.0, "embeddings": 8.0, "index": 2.0, "neighbours": None}
    assert _divide(hours, 4, {"chunks": 1.0}, ["index"]) == {
        "chunks": 2.0,
        "embeddings": 2.0,
        "index": 2.0,
        "neighbours": None,
    }
    assert _divide(hours, 4, {}, [])["index"] == 0.5
    plan = plan_preparation(small_recipe(tmp_path), 8)  # Flat
    alone = 10**6 / 3600
    million = plan.estimates[0].hours
    assert million["embeddings"] == pytest.approx(alone / plan.rates.embeddings / 8)
    assert million["index"] == pytest.approx(alone / plan.rates.index)
    assert alone / plan.rates.reading < (million["chunks"] or 0) < alone / plan.rates.chunks
    assert "one process builds the index Flat of 1,000,000 chunks (docs/scale.md)" in plan.notes
    lists = {"name": "faiss", "build": {"factory": "IVF16,SQfp16"}}
    assert not plan_preparation(small_recipe(tmp_path, retriever=lists), 8).notes


def test_what_reads_texts_says_what_is_not_measured(tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    plan = plan_preparation(small_recipe(tmp_path, retriever={"name": "bm25"}))
    assert plan.rates.embeddings == 0 and "embeddings" not in plan.estimates[0].hours
    assert plan.estimates[0].hours["neighbours"] is None and "neighbours unknown; at least " in plan.estimates[0].line()
    assert any("index and neighbours are not measured: bm25" in note for note in plan.notes)


def test_an_index_too_large_for_the_measurement_is_a_note(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    lists = {"name": "faiss", "build": {"factory": "IVF4096,SQ8"}}
    plan = plan_preparation(small_recipe(tmp_path, retriever=lists))
    assert any("not measured: " in note and "4096 lists, more than the 400 vectors" in note for note in plan.notes)


def test_nothing_is_sent_to_a_served_database() -> None:
    served = SimpleNamespace(capabilities=SimpleNamespace(device="remote"))
    with pytest.raises(RetroflowError, match="qdrant would keep the vectors on its server"):
        preparation._search(SimpleNamespace(new=lambda: served, owner="qdrant"), Rates(1.0), 8, 2)


def test_the_command_prints_lines_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prepare", "--recipe", str(recipe_file(tmp_path)), "--dry-run"]
    assert run(command) == 0
    assert capsys.readouterr().out.endswith("nothing was made\n")
    assert run([*command, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [one["chunks"] for one in values["estimates"]] == [10**6, 10**9]
    assert set(values["chunks_per_second"]) == set(preparation.STAGES)
    for flags, count in (("--on local --shares 16", 16), ("--shard 2/4", 4)):
        assert run([*command, *flags.split()]) == 0
        assert f"the hours are for {count} processes like this one" in capsys.readouterr().out
    assert run([*command, "--merge"]) == 2
    assert "--dry-run estimates a whole preparation; leave out --merge and --step." in capsys.readouterr().err
    assert not (tmp_path / "artifacts").exists()


def test_without_retrieval_chunks_are_all(tmp_path: Path) -> None:
    plan = plan_preparation(Recipe(small_recipe(tmp_path).values | {"trainer": {"retrieval": False}}, {}, tmp_path))
    assert plan.preview.missing == ("chunks",) and plan.rates.embeddings == plan.rates.index == 0
    for estimate in plan.estimates:
        assert list(estimate.hours) == list(estimate.disk) == ["chunks"]
    assert "the recipe needs chunks only" in plan.notes
