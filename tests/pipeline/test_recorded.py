"""Fingerprints are known before anything is made, and are enough to open what was made."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from retroflow.errors import CorpusError, DamagedDataError, RetroflowError, UsageError
from retroflow.pipeline.prepare import Prepared, expected_fingerprints, prepare
from retroflow.pipeline.recorded import open_recorded
from retroflow.store.manifest import KINDS
from tests.pipeline.recipes import small_recipe

SECTIONS: list[dict[str, Any]] = [
    {},
    {"neighbours": {"k": 1}},
    {"retriever": {"name": "exact"}},
    {"embedder": {"dimension": 16}},
    {"data": {"chunk_length": 8}},
    {"corpus": {"valid_share": 0.3}},
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(small_recipe(tmp_path_factory.mktemp("recorded")))


def folder_of(prepared: Prepared, artifacts: Path) -> Any:
    return lambda kind: artifacts / f"{kind}-{prepared.fingerprints[kind]}"


def test_what_is_expected_is_what_is_made_and_nothing_is_made_for_it(tmp_path: Path) -> None:
    expected = [expected_fingerprints(small_recipe(tmp_path, **sections)) for sections in SECTIONS]
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]
    for fingerprints, sections in zip(expected, SECTIONS, strict=True):
        assert prepare(small_recipe(tmp_path, **sections)).fingerprints == fingerprints
    without = small_recipe(tmp_path, trainer={"name": "", "retrieval": False})
    assert expected_fingerprints(without) == {"chunks": expected[0]["chunks"]} == prepare(without).fingerprints


def test_a_corpus_that_is_gone_is_told(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises((CorpusError, UsageError), match="corpus"):
        expected_fingerprints(recipe)


def test_artifacts_are_opened_by_their_fingerprints_alone(prepared: Prepared, tmp_path: Path) -> None:
    copy = tmp_path / "artifacts"
    shutil.copytree(prepared.tokenizer.parents[1], copy)
    opened = open_recorded(folder_of(prepared, copy), KINDS)
    assert opened.fingerprints == prepared.fingerprints and opened.built == ()
    assert opened.valid_neighbours is not None and opened.valid_neighbours.is_relative_to(copy)
    alone = open_recorded(folder_of(prepared, copy), ["chunks"])
    assert list(alone.fingerprints) == ["chunks"] and alone.index is None


def test_artifacts_that_do_not_belong_together_or_were_changed_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    copy = tmp_path / "artifacts"
    shutil.copytree(prepared.tokenizer.parents[1], copy)
    other = prepare(small_recipe(tmp_path, embedder={"dimension": 16}))
    named = prepared.fingerprints | {"embeddings": other.fingerprints["embeddings"]}
    with pytest.raises(DamagedDataError, match="index-.*made from another embeddings"):
        open_recorded(lambda kind: copy / f"{kind}-{named[kind]}", KINDS)
    table = copy / f"neighbours-{prepared.fingerprints['neighbours']}" / "valid" / "ids.npy"
    content = bytearray(table.read_bytes())
    content[-1] ^= 1
    table.write_bytes(content)
    with pytest.raises(DamagedDataError, match="ids.npy"):
        open_recorded(folder_of(prepared, copy), KINDS)
    shutil.rmtree(table.parents[1])
    with pytest.raises(RetroflowError, match="does not exist"):
        open_recorded(folder_of(prepared, copy), KINDS)
