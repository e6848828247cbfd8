import json
from pathlib import Path

import pytest

from retroflow.cli.main import run

RECIPE = str(Path(__file__).resolve().parents[2] / "recipes" / "retro_small.yaml")
Capture = pytest.CaptureFixture[str]


def test_show_prints_each_value_with_its_origin_in_columns(capsys: Capture) -> None:
    assert run(["recipe", "show", "--recipe", RECIPE, "neighbours.k=4"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert rows["neighbours.k"].split()[1:] == ["4", "command", "line"]
    assert rows["neighbours.exclude_same_document"].split()[1:] == ["true", "default"]
    assert f"{RECIPE}:" in rows["corpus.name"]
    assert rows["neighbours.k"].index("4") == rows["seed"].index("1")


def test_show_as_json_holds_values_and_origins(capsys: Capture) -> None:
    assert run(["recipe", "show", "--recipe", RECIPE, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["recipe"] == RECIPE
    assert shown["values"]["recipe_version"] == 1
    assert shown["origins"]["tracker.name"] == "default" or shown["origins"]["tracker.name"].startswith(RECIPE)


def test_check_says_ok_and_what_the_recipe_names(capsys: Capture) -> None:
    assert run(["recipe", "check", "--recipe", RECIPE]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith(f"{RECIPE}: OK: corpus python_source, embedder bert, retriever faiss, model retro")


def test_check_adds_what_must_be_installed_to_run_it(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retroflow.registry.missing_modules", lambda entry: list(entry.requires))
    assert run(["recipe", "check", "--recipe", RECIPE, "retriever.name=scann"]) == 0
    assert 'to run it here: retriever "scann"' in capsys.readouterr().out


def test_check_lists_all_errors_and_exits_with_2(capsys: Capture) -> None:
    assert run(["recipe", "check", "--recipe", RECIPE, "seed=x", "trainer.max_steps=x", "data.chunk=1"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "has 3 errors:" in shown.err


def test_values_that_can_never_work_are_all_told_at_once(capsys: Capture) -> None:
    wrong = ["corpus.valid_share=1", "corpus.max_document_bytes=0", "retriever.search.nprobe=0", "seed=-1"]
    wrong += ["retriever.build.factory=XYZ", "embedder={name: lexical, word_ngrams: 0, character_ngram: 0}"]
    wrong += ["trainer.accumulate=3", "model.width=0"]
    assert run(["recipe", "check", "--recipe", RECIPE, *wrong]) == 2
    shown = capsys.readouterr().err
    assert f"has {len(wrong)} errors:" in shown
    for key in ("corpus.valid_share", "retriever.build.factory", "embedder.word_ngrams", "trainer.accumulate"):
        assert f"command line: {key} " in shown
    assert run(["recipe", "check", "--recipe", RECIPE, "corpus.valid_share=0"]) == 2
    assert "corpus.valid_share is 0, so that no text is left to evaluate the model on" in capsys.readouterr().err


def test_ranges_are_checked_with_the_place_of_the_value(capsys: Capture) -> None:
    assert run(["recipe", "check", "--recipe", RECIPE, "neighbours.k=0"]) == 2
    assert "command line: neighbours.k is 0; allowed: a whole number of at least 1." in capsys.readouterr().err


def test_what_follows_from_a_default_is_placed_where_its_section_is_written(capsys: Capture, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "recipe_version: 1\ncorpus:\n  name: python_source\nembedder: {name: lexical}\nretriever: {name: exact}\n"
        "model:\n  name: retro\n  num_layers: 3\n"
    )
    assert run(["recipe", "check", "--recipe", str(recipe)]) == 2
    shown = capsys.readouterr().err
    assert f"{recipe}:2: corpus.packages names no package" in shown
    assert f"{recipe}:6: model.cca_layers is [6, 9, 12], which names layer 12" in shown


def test_a_checksum_that_can_be_none_is_refused(capsys: Capture) -> None:
    assert run(["recipe", "check", "--recipe", RECIPE, "embedder.weights_sha256=wrong"]) == 2
    assert "command line: embedder.weights_sha256 is" in capsys.readouterr().err


def test_sizes_that_no_machine_can_hold_are_refused_in_the_recipe(capsys: Capture) -> None:
    """They ended in overflows within libraries, or in loops without an end."""
    keys = [
        "data.vocabulary_size", "embedder.word_ngrams", "embedder.character_ngram", "embedder.buckets", "model.width",
        "model.head_width", "model.num_layers", "model.encoder_width", "model.encoder_layers", "model.cca_scale",
        "trainer.timeout_seconds"
    ]  # fmt: skip
    assert (
        run(["recipe", "check", "--recipe", RECIPE, "embedder.name=lexical", *(f"{key}={2**62}" for key in keys)]) == 2
    )
    said = capsys.readouterr().err
    assert not [key for key in keys if f"{key} is {2**62}; allowed: a " not in said]


def test_overrides_of_a_schema_need_a_recipe(capsys: Capture) -> None:
    assert run(["recipe", "schema", "retriever.name=exact"]) == 2
    assert "retriever.name=exact is given without a recipe; add --recipe R" in capsys.readouterr().err
