"""Hugging Face data sets: local copies really, the hub by a stand-in."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from retroflow.corpus.datasets import DatasetsCorpus
from retroflow.errors import CorpusError, DamagedDataError, MissingExtraError

datasets = pytest.importorskip("datasets", reason="needs the extra datasets")

ROWS = {"text": ["one", "two", "three"], "id": ["a", "b", "c"], "title": ["A", "B", ""]}


def read(path: object, **options: Any) -> list[tuple[str, str, str, str]]:
    corpus = DatasetsCorpus(**{"path": str(path), "valid_share": 0.0, **options})
    return [(d.id, d.title, d.text, d.split) for d in corpus.documents()]


def test_a_folder_of_save_to_disk_is_read(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(ROWS).save_to_disk(tmp_path / "one")
    expected = [("a", "A", "one", "train"), ("b", "B", "two", "train"), ("c", "c", "three", "train")]
    assert read(tmp_path / "one") == expected
    both = datasets.DatasetDict(
        train=datasets.Dataset.from_dict(ROWS), test=datasets.Dataset.from_dict({"text": ["held out"]})
    )
    both.save_to_disk(tmp_path / "both")
    assert read(tmp_path / "both", valid_split="test") == [*expected, ("test:1", "test:1", "held out", "valid")]
    with pytest.raises(CorpusError, match=r"corpus\.valid_split: every document is also in"):
        read(tmp_path / "both", valid_split="train")
    with pytest.raises(CorpusError, match="split nothing, could not be opened"):
        read(tmp_path / "both", split="nothing")


def test_a_folder_of_data_files_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"body": f"text {i}"}) + "\n" for i in range(3)))
    assert [row[2] for row in read(tmp_path, text_key="body")] == ["text 0", "text 1", "text 2"]
    with pytest.raises(CorpusError, match=r'corpus\.text_key: .* no column "text"; its columns: "body"'):
        read(tmp_path)
    with pytest.raises(CorpusError, match=r'corpus\.id_key: .* no "key"'):
        read(tmp_path, text_key="body", id_key="key")
    before = DatasetsCorpus(path=str(tmp_path)).fingerprint()
    (tmp_path / "train.jsonl").write_text('{"body": "other"}\n')
    assert DatasetsCorpus(path=str(tmp_path)).fingerprint() != before


def test_a_folder_with_our_own_artifacts_in_it_is_refused_where_they_would_be_read(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "one"}\n')
    datasets.Dataset.from_dict(ROWS).save_to_disk(tmp_path / "saved")
    for folder in (tmp_path, tmp_path / "saved"):
        (folder / "runs" / "0001").mkdir(parents=True)
        for name in ("recipe.yaml", "run.json", "metrics.jsonl"):
            (folder / "runs" / "0001" / name).write_text("{}")
    with pytest.raises(CorpusError, match=r"corpus\.path: .*holds runs/0001, which retroflow made.*of their own"):
        DatasetsCorpus(path=str(tmp_path)).fingerprint()
    before = DatasetsCorpus(path=str(tmp_path / "saved")).fingerprint()
    (tmp_path / "saved" / "runs" / "0001" / "metrics.jsonl").write_text("more")
    assert DatasetsCorpus(path=str(tmp_path / "saved")).fingerprint() == before


def test_a_row_that_is_no_text_or_too_long_is_named(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["one", None], "n": [1, 2]}).save_to_disk(tmp_path)
    with pytest.raises(DamagedDataError, match='train split, row 2: "text" is null'):
        read(tmp_path)
    with pytest.raises(DamagedDataError, match='row 1: "n" is int, allowed is a string'):
        read(tmp_path, text_key="n")
    with pytest.raises(DamagedDataError, match="row 1: a document of 3 bytes, allowed are 2"):
        read(tmp_path, max_document_bytes=2)


def test_a_lone_surrogate_is_named_by_its_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"text": "a\ud800"}])
    with pytest.raises(DamagedDataError, match=r'train split, row 1: "text" has half a surrogate pair'):
        read(tmp_path)


def test_files_that_cannot_be_parsed_are_damage(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "one"}\n{"text": ')
    with pytest.raises((DamagedDataError, CorpusError), match=str(tmp_path)):
        read(tmp_path)


def test_offline_it_says_what_it_tried_and_how_to_use_a_local_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no network here")

    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    for attempt in (lambda: read("nobody/nothing"), lambda: DatasetsCorpus(path="nobody/nothing").fingerprint()):
        with pytest.raises(CorpusError) as caught:
            attempt()
        for part in ("nobody/nothing", "does not exist", "https://huggingface.co/datasets/nobody/nothing"):
            assert part in str(caught.value)
        assert "no network here" in str(caught.value) and "local copy" in str(caught.value)


def test_a_hub_name_is_streamed_at_the_commit_of_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    class Info:
        sha = "f" * 40

    asked: list[tuple[object, ...]] = []

    def load(path: str, config: str | None, **options: object) -> list[dict[str, str]]:
        asked.append((path, config, options))
        return [{"text": "from the hub"}]

    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: Info)
    monkeypatch.setattr(datasets, "load_dataset", load)
    corpus = DatasetsCorpus(path="some/name", config_name="en", valid_share=0.0)
    assert corpus.fingerprint()["content"] == Info.sha
    assert [document.text for document in corpus.documents()] == ["from the hub"]
    assert asked == [("some/name", "en", {"split": "train", "streaming": True, "revision": Info.sha})]


def test_without_datasets_the_pip_line_comes_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "retroflow\[datasets\]"'):
        DatasetsCorpus(path="x")
