"""Every chunk is text of the document that its record names, whatever the corpus, in one process or in shares."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retroflow.corpus.tokenizer import Tokenizer, train_tokenizer
from retroflow.errors import DamagedDataError
from retroflow.pipeline import chunks as chunks_stage
from retroflow.pipeline.chunks import ChunkStage
from retroflow.pipeline.options import DataOptions
from retroflow.pipeline.prepare import prepare
from retroflow.pipeline.sharing import ALONE
from retroflow.pipeline.stages import make_artifact
from retroflow.protocols import Counts, Document
from retroflow.recipe import Recipe
from retroflow.store.artifact import artifact_folder
from tests.pipeline.read_back import check_chunks, make_chunks_in_shares
from tests.pipeline.recipes import small_recipe

PIECE = 500  # characters, so that 30 documents are some dozen pieces
WORDS = ("the", "retrieval", "na\u00efve", "\u732b\u304c", "\U0001f600", "x = f(y)", "\n", "<|endoftext|>", "\r\n\t")


def texts(number: int, seed: int) -> list[str]:
    """Distinct texts of one to some hundreds of words."""
    draw = random.Random(seed)
    return [f"text {i}: " + " ".join(draw.choices(WORDS, k=draw.choice((1, 20, 200)))) for i in range(number)]


def jsonl(folder: Path, texts: list[str]) -> dict[str, Any]:
    rows = ({"id": f"id {i}", "text": text, "meta": {"title": f"Title {i}"}} for i, text in enumerate(texts))
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "jsonl", "path": str(folder), "valid_share": 0.3}


def text(folder: Path, texts: list[str]) -> dict[str, Any]:
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_bytes(text.encode())
    return {"name": "text", "path": str(folder), "include": "**/*.txt", "valid_share": 0.3}


def columns(texts: list[str]) -> dict[str, list[str]]:
    number = range(len(texts))
    return {"text": texts, "id": [f"id {i}" for i in number], "title": [f"Title {i}" for i in number]}


def parquet(folder: Path, texts: list[str]) -> dict[str, Any]:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra parquet")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns(texts)), folder / "a.parquet")
    return {"name": "parquet", "path": str(folder), "valid_share": 0.3}


def datasets(folder: Path, texts: list[str]) -> dict[str, Any]:
    library = pytest.importorskip("datasets", reason="needs the extra datasets")
    library.Dataset.from_dict(columns(texts)).save_to_disk(folder / "saved")
    return {"name": "datasets", "path": str(folder / "saved"), "valid_share": 0.3}


def python_source(folder: Path, texts: list[str]) -> dict[str, Any]:
    package = folder / "some_package"
    for i, text in enumerate(texts):
        (package / f"part{i}").mkdir(parents=True)
        (package / f"part{i}" / "code.py").write_bytes(text.encode())
    (package / "__init__.py").write_text("")
    return {"name": "python_source", "packages": ["some_package"], "include": "*/*.py", "valid_share": 0.3}


def written(kind: str, options: dict[str, Any], texts: list[str]) -> list[Document]:
    """The documents as the test wrote them, without asking the corpus; the split is the corpus' to choose."""

    def document(i: int, text: str) -> Document:
        if kind in ("text", "python_source"):
            name = f"{i}.txt" if kind == "text" else f"some_package/part{i}/code.py"
            newlines = text if kind == "text" else text.replace("\r\n", "\n").replace("\r", "\n")
            return Document(name, name, newlines, name, "train")
        source = {"jsonl": f"a.jsonl:{i + 1}", "parquet": f"a.parquet:{i + 1}", "datasets": f"train:{i + 1}"}[kind]
        return Document(f"id {i}", f"Title {i}", text, source, "train")

    return [document(i, text) for i, text in enumerate(texts)]


KINDS: dict[str, Callable[[Path, list[str]], dict[str, Any]]] = {
    "jsonl": jsonl,
    "text": text,
    "parquet": parquet,
    "datasets": datasets,
    "python_source": python_source,
}


@pytest.mark.parametrize("shares", [0, 3], ids=["alone", "in_shares"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_document_is_read_back_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, shares: int
) -> None:
    monkeypatch.setattr(chunks_stage, "BLOCK_TEXT_BYTES", PIECE)
    monkeypatch.syspath_prepend(str(tmp_path / "corpus"))
    (tmp_path / "corpus").mkdir()
    all_texts = texts(30, seed=shares)
    corpus = KINDS[kind](tmp_path / "corpus", all_texts)
    recipe = without_retrieval(small_recipe(tmp_path, corpus=corpus))
    if shares:
        make_chunks_in_shares(recipe, shares)
    made = prepare(recipe, report=lambda stage: None)
    expected = {document.source: document for document in written(kind, corpus, all_texts)}
    read = {document.source: document for document in corpus_of(recipe)}
    assert {source: replace(document, split="train") for source, document in read.items()} == expected
    check_chunks(made.stages[0].folder, read.values())
    splits = made.stages[0].manifest.info["splits"]
    assert splits["train"]["documents"] > 10 and splits["valid"]["documents"] > 3


def corpus_of(recipe: Recipe) -> Iterator[Document]:
    from retroflow.components import CORPORA, create

    yield from create(CORPORA, recipe.section("corpus")).documents()


def without_retrieval(recipe: Recipe) -> Recipe:
    """The recipe of which chunks alone are made."""
    return replace(recipe, values=recipe.values | {"trainer": {"retrieval": False}})


@dataclass
class GivenDocuments:
    """A corpus of these documents."""

    given: list[Document]
    counts: Counts = field(default_factory=Counts)

    def documents(self) -> Iterator[Document]:
        yield from self.given

    def fingerprint(self) -> dict[str, object]:
        return {}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(texts(20, seed=1), 300)


ANY_DOCUMENTS = st.lists(
    st.tuples(st.text(min_size=1, max_size=60), st.text(max_size=8), st.sampled_from(("train", "valid"))), max_size=12
)


@settings(deadline=None, max_examples=25)
@given(documents=ANY_DOCUMENTS, piece=st.integers(1, 100), chunk_length=st.integers(2, 9))
def test_any_documents_in_any_pieces_are_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Tokenizer,
    documents: list[tuple[str, str, str]],
    piece: int,
    chunk_length: int,
) -> None:
    given_documents = [
        Document(f"{name}/{i}", name, text, f"file:{i}", split)  # type: ignore[arg-type]
        for i, (text, name, split) in enumerate([*documents, ("a", "", "train"), ("b", "", "valid")])
    ]
    inputs = {"corpus": {}}
    folder = artifact_folder(tmp_path_factory.mktemp("any"), "chunks", inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks_stage, "BLOCK_TEXT_BYTES", piece)
        data, corpus = DataOptions(chunk_length=chunk_length), GivenDocuments(given_documents)
        assert make_artifact(ChunkStage(inputs, corpus, tokenizer, data), folder, ALONE)
    check_chunks(folder, given_documents)


@pytest.mark.parametrize("array", ["document_ids", "document_offsets"])
def test_pieces_that_are_joined_wrongly_never_become_an_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: str
) -> None:
    monkeypatch.setattr(chunks_stage, "BLOCK_TEXT_BYTES", PIECE)
    shift = chunks_stage._Shift.__call__

    def without_a_shift(self: Any, arrays: dict[str, Any]) -> dict[str, Any]:
        return shift(self, arrays) | {f"valid/{array}": shift(chunks_stage._Shift(0), arrays)[f"valid/{array}"]}

    monkeypatch.setattr(chunks_stage._Shift, "__call__", without_a_shift)
    recipe = without_retrieval(small_recipe(tmp_path))
    with pytest.raises((DamagedDataError, ValueError), match=rf"valid/{array}\.npy"):
        prepare(recipe, report=lambda stage: None)
    assert not [path for path in (tmp_path / "artifacts").glob("chunks-*") if path.suffix == ""]
