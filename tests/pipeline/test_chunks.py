"""What making chunks says on the way."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from retroflow.pipeline import chunks as chunks_stage
from retroflow.pipeline.prepare import Prepared, find_prepared, prepare
from tests.pipeline.recipes import small_recipe, write_corpus
from tests.pipeline.test_sources import KINDS, texts, without_retrieval


def made(folder: Path, **data: object) -> Prepared:
    return prepare(without_retrieval(small_recipe(folder, data=data)), report=lambda stage: None)


def test_what_takes_the_tokenizer_long_is_said_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path)
    assert "tokenizer:" not in capsys.readouterr().err
    with (tmp_path / "corpus.jsonl").open("a") as stream:
        stream.write(json.dumps({"id": "long", "text": "A" * 3_000_000}) + "\n")
    monkeypatch.setattr(chunks_stage, "SAID_CHARACTERS", 1_000_000)
    made(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("corpus.jsonl:41: tokenising one document of 3 million characters;") for line in lines)
    (line,) = [line for line in lines if line.startswith("tokenizer: ")]
    assert line.endswith(" training documents read; learning up to 400 tokens from 3 MB of their text")
    assert made(tmp_path).built == () and "million" not in capsys.readouterr().err


def test_a_validation_split_that_is_tiny_is_warned_of_every_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "corpus.jsonl", 40, words=3)
    for _ in range(2):
        done = made(tmp_path)
        tokens = done.stages[0].manifest.info["splits"]["valid"]["tokens"]
        assert 0 < tokens < 1000
        assert f"warning: the validation split has only {tokens} tokens" in capsys.readouterr().err
    find_prepared(without_retrieval(small_recipe(tmp_path)))  # one of many processes says nothing
    assert capsys.readouterr().err == ""
    write_corpus(tmp_path / "corpus.jsonl", 60)
    made(tmp_path)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["jsonl", "text", "parquet"])
def test_the_current_folder_is_a_corpus_however_often_it_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    corpus = KINDS[kind](Path("data"), texts(20, seed=3)) | {"path": "."}
    if kind == "text":
        corpus["include"] = "**/*"
    recipe = small_recipe(tmp_path, corpus=corpus, data={"artifacts_folder": "artifacts"})
    (tmp_path / "corpus.jsonl").unlink()  # of small_recipe
    first = prepare(recipe, report=lambda stage: None)
    assert capsys.readouterr().err.count("skipped: retroflow's own artifacts/chunks-") == 1
    for name in ("recipe.yaml", "run.json", "metrics.jsonl"):  # what fit leaves
        Path("runs/small/0001").mkdir(parents=True, exist_ok=True)
        Path("runs/small/0001", name).write_text('{"loss": 1.0}\n')
    second = prepare(recipe, report=lambda stage: None)
    assert first.built != () == second.built and second.fingerprints == first.fingerprints
    other = replace(recipe, values=recipe.values | {"data": recipe.section("data") | {"chunk_length": 8}})
    again = prepare(without_retrieval(other), report=lambda stage: None)
    counts = {split: stage["documents"] for split, stage in first.stages[0].manifest.info["splits"].items()}
    assert counts == {split: stage["documents"] for split, stage in again.stages[0].manifest.info["splits"].items()}
    assert sum(counts.values()) == 20
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "; skipped: " in line]
    assert line.endswith(" and 4 more")  # four artifacts, two folders of work in progress, and the run
