"""Plugins in front of `prepare`: what names their index, what is said of their answers, and whom a failure blames."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retroflow.errors import RetrieverError
from retroflow.pipeline import legal_search, recipe_retriever
from retroflow.pipeline.prepare import Prepared, describe, prepare
from retroflow.registry import Registry
from tests.pipeline.recipes import small_recipe

SOURCE = '''
from dataclasses import dataclass
import numpy as np
from retroflow.protocols import Capabilities, Neighbours

@dataclass(frozen=True)
class Build:
    num_trees: int = 10

@dataclass(frozen=True)
class Search:
    effort: int = 4

class Plugin:
    """Exact, and wrong in one way."""

    capabilities = Capabilities()

    def __init__(self, *, build: Build | None = None, search: Search | None = None, depth: int = 3) -> None: ...

    def build(self, keys):
        self.vectors = np.asarray(keys.vectors[0 : len(keys)], np.float32)

    def search(self, queries, k):
        scores = -((self.vectors[None] - queries.vectors[:, None]) ** 2).sum(2)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores = np.take_along_axis(scores, order, 1)
        return padded(WRONG(order, scores), k)

    def save(self, folder):
        np.save(folder / "vectors.npy", self.vectors)

    def load(self, folder):
        self.vectors = np.load(folder / "vectors.npy")

    def fingerprint(self):
        return {}

def padded(answer, k):
    ids, scores = answer
    missing = ((0, 0), (0, k - ids.shape[1]))
    return Neighbours(
        np.pad(ids.astype(np.int64), missing, constant_values=-1),
        np.pad(scores.astype(np.float32), missing, constant_values=-np.inf),
    )

WRONG = lambda ids, scores: (ids, scores)
'''

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a plugin "mine" of the distribution retroflow-mine, again if it is there."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))

    def write(more: str = "", version: str = "0.1") -> None:
        for old in site.glob("*"):
            for file in old.iterdir() if old.is_dir() else []:
                file.unlink()
        info = site / f"retroflow_mine-{version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: retroflow-mine\nVersion: {version}\n")
        (info / "entry_points.txt").write_text("[retroflow.retrievers]\nmine = mine_plugin:Plugin\n")
        (site / "mine_plugin.py").write_text(SOURCE + more)
        for other in site.glob("*.dist-info"):
            if other != info:
                other.rmdir()
        sys.modules.pop("mine_plugin", None)
        registry: Registry[Any] = Registry("retriever", "retroflow.retrievers", {})
        monkeypatch.setattr(recipe_retriever, "RETRIEVERS", registry)
        monkeypatch.setattr("retroflow.components.RETRIEVERS", registry)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)

    return write


MINE = {"name": "mine", "build": {"num_trees": 10}, "search": {"effort": 4}, "depth": 3}


def prepared(folder: Path, retriever: dict[str, Any] = MINE, **sections: Any) -> Prepared:
    return prepare(small_recipe(folder, retriever=retriever, **sections), report=lambda stage: None)


def test_the_host_knows_an_index_by_options_and_version_of_a_plugin_that_says_nothing(
    install: Install, tmp_path: Path
) -> None:
    install()
    prepared(tmp_path)
    assert prepared(tmp_path).built == ()
    assert prepared(tmp_path, MINE | {"search": {"effort": 9}}).built == ("neighbours",)
    assert prepared(tmp_path, MINE | {"build": {"num_trees": 11}}).built == ("index", "neighbours")
    assert prepared(tmp_path, MINE | {"depth": 4}).built == ("index", "neighbours")
    install(version="0.2")
    assert prepared(tmp_path).built == ("index", "neighbours")
    assert prepared(tmp_path).built == ()


def test_the_version_of_retroflow_changes_no_index_of_its_own_retrievers() -> None:
    from retroflow.pipeline.fingerprint import index_inputs

    versions = (f"retroflow {version}" for version in ("0.1", "0.2"))
    first, second = (index_inputs({"embeddings": "e"}, {"name": "exact"}, version, {}) for version in versions)
    assert first == second and "distribution" not in first


def test_a_retriever_that_finds_nothing_has_recall_0_and_a_warning(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("WRONG = lambda ids, scores: (ids[:, :0], scores[:, :0])\n")
    done = prepared(tmp_path)
    info = done.stages[3].manifest.info
    total = sum(info["chunks"].values())
    assert info["recall"]["recall_at_k"] == 0.0
    assert info["searched_exactly"] == {"retriever_ran_out": total, "large_document": 0}
    assert f"{total} (100.0%) searched exactly since the retriever had too few candidates" in describe(done.stages[3])
    told = capsys.readouterr().err
    assert told.count("warning: recall@2 is 0.000: mine (retroflow-mine 0.1) misses more than half") == 1
    assert "note: mine (retroflow-mine 0.1) has too few candidates for 100% of these chunks" in told
    prepared(tmp_path)
    assert "warning: recall@2 is 0.000" in capsys.readouterr().err  # of what is re-used, too


def test_recall_and_counts_do_not_depend_on_who_made_which_block(install: Install, tmp_path: Path) -> None:
    from retroflow.pipeline.sharing import Shard, Sharing

    install("WRONG = lambda ids, scores: (ids[:, :2], scores[:, :2])\n")
    alone = prepared(tmp_path, MINE).stages[3].manifest
    assert 0 < alone.info["searched_exactly"]["retriever_ran_out"] < sum(alone.info["chunks"].values())
    recipe = small_recipe(tmp_path, retriever=MINE, data={"artifacts_folder": str(tmp_path / "shared")})
    prepare(recipe, report=lambda stage: None, sharing=Sharing(Shard(1, 1)))
    merged = prepare(recipe, report=lambda stage: None).stages[3].manifest
    assert merged.render() == alone.render()


def test_invented_scores_are_told(install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install("WRONG = lambda ids, scores: (ids, np.tile(-np.arange(ids.shape[1]), (len(ids), 1)))\n")
    info = prepared(tmp_path).stages[3].manifest.info
    assert info["recall"]["recall_at_k"] == 1.0 and info["recall"]["score_error"] > 0.15
    assert "warning: the scores that mine (retroflow-mine 0.1) reports are not the similarities" in (
        capsys.readouterr().err
    )


def test_a_good_retriever_is_named_before_it_works_and_not_warned_of(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install()
    info = prepared(tmp_path).stages[3].manifest.info
    assert info["recall"] == {"recall_at_k": 1.0, "queries": info["recall"]["queries"], "score_error": 0.0}
    told = capsys.readouterr().err
    assert re.search(r"^building the index with mine \(retroflow-mine 0\.1\), [\d,]+ chunks$", told, re.MULTILINE)
    assert re.search(r"^searching the index with mine \(retroflow-mine 0\.1\), [\d,]+ chunks$", told, re.MULTILINE)
    assert "warning" not in told and "note" not in told


def test_what_cannot_be_read_a_moment_after_it_was_written_is_a_bug_of_the_retriever(
    install: Install, tmp_path: Path
) -> None:
    install("Plugin.save = lambda self, folder: None\n")
    with pytest.raises(RetrieverError, match=r"mine \(retroflow-mine 0\.1\): load\(\) cannot read what save") as caught:
        prepared(tmp_path)
    assert "FileNotFoundError" in str(caught.value) and "bug of the retriever" in str(caught.value)
    assert "Delete" not in str(caught.value) and caught.value.exit_code == 1


def test_an_index_that_load_changes_is_a_bug_of_the_retriever_and_no_damage(install: Install, tmp_path: Path) -> None:
    install(
        "read = Plugin.load\n"
        "def load(self, folder):\n    read(self, folder)\n    (folder / 'cache').write_text('x')\n"
        "Plugin.load = load\n"
    )
    for _ in range(2):
        with pytest.raises(RetrieverError, match=r"mine \(retroflow-mine 0\.1\): load\(\) changed .*backend/cache"):
            prepared(tmp_path)


@pytest.mark.parametrize("member", ["build", "search", "save", "load", "fingerprint"])
def test_a_plugin_that_ends_the_process_ends_prepare_with_its_name(
    install: Install, tmp_path: Path, member: str
) -> None:
    install(f"import sys\ndef end(*given): sys.exit(0)\nPlugin.{member} = end\n")
    with pytest.raises(RetrieverError, match=rf"mine \(retroflow-mine 0\.1\): {member}\(\) failed: .*SystemExit: 0"):
        prepared(tmp_path)


def test_chunks_of_a_large_document_are_counted_and_told_as_such(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legal_search, "MAX_FETCH", 8)  # documents of the corpus have some 17 chunks
    monkeypatch.setattr(legal_search, "FIRST_FETCHES", 0)
    install()
    done = prepared(tmp_path)
    info = done.stages[3].manifest.info
    train = info["chunks"]["train"]
    assert f"{train} (77.3%)" in describe(done.stages[3])
    assert "searched exactly since their document has more than 4,096 chunks" in describe(done.stages[3])
    assert info["searched_exactly"] == {"retriever_ran_out": 0, "large_document": train}
    assert info["recall"]["recall_at_k"] is None and info["recall"]["queries"] == 0
    assert "note: 100% of these chunks are of a document of more than" in capsys.readouterr().err


def test_a_fingerprint_that_is_none_is_refused_before_anything_is_made(install: Install, tmp_path: Path) -> None:
    install("Plugin.fingerprint = lambda self: None\n")
    with pytest.raises(RetrieverError, match=r"mine \(retroflow-mine 0\.1\): fingerprint\(\) must return a dict"):
        prepared(tmp_path)
    assert not (tmp_path / "artifacts").exists()
