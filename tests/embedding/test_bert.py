"""BertEmbedder: the contract with the real MiniLM, and the arithmetic with a tiny random BERT."""

import functools
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from retroflow.embedding.bert import BertEmbedder
from retroflow.embedding.model_files import MINILM_WHEEL
from retroflow.errors import DamagedDataError, UsageError
from retroflow.testing.embedder_contract import TEXTS, EmbedderContract
from tests.embedding.tiny_bert import write_tiny_bert, write_tiny_distilbert

SHORT_TEXTS = ["alpha", "beta gamma", "alpha beta (gamma) deltas", "", "delta delta delta", "beta gamma", "gammaed"]

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(MINILM_WHEEL) is None, reason='needs pip install "retroflow[minilm]"'
)


@functools.cache
def minilm(**options: object) -> BertEmbedder:
    return BertEmbedder(**options)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny_bert"))


def reference(folder: Path, texts: list[str]) -> np.ndarray:
    """One text at a time, by transformers and the definition of the mean."""
    network, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        with torch.no_grad():
            states = network(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).last_hidden_state
        rows.append(states[0].mean(dim=0).numpy())
    return np.stack(rows)


@needs_minilm
class TestBertEmbedder(EmbedderContract):
    """One embedder for all tests: it is frozen, and loading it takes a second."""

    def make_embedder(self) -> BertEmbedder:
        return minilm()

    def make_other_embedder(self) -> BertEmbedder:
        return minilm(max_length=64)


@needs_minilm
def test_bfloat16_and_float32_differ_by_rounding_only() -> None:
    exact, rounded = minilm(precision="float32"), minilm(precision="bfloat16")
    cosines = (exact.embed(TEXTS) * rounded.embed(TEXTS)).sum(axis=1)
    assert cosines.min() > 0.9995


@pytest.mark.parametrize("batch_tokens", [1, 16, 1024])
@pytest.mark.parametrize("threads", [1, 2])
def test_packed_texts_get_the_vectors_of_transformers(tiny: Path, batch_tokens: int, threads: int) -> None:
    embedder = BertEmbedder(
        model=str(tiny), max_length=64, normalise=False, precision="float32", batch_tokens=batch_tokens
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        vectors = embedder.embed(SHORT_TEXTS)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert embedder._packed is not None
    np.testing.assert_allclose(vectors, reference(tiny, SHORT_TEXTS), atol=2e-5)


def test_another_architecture_gets_the_vectors_of_transformers(tmp_path: Path) -> None:
    folder = write_tiny_distilbert(tmp_path)
    embedder = BertEmbedder(model=str(folder), normalise=False, precision="float32")
    assert embedder.dimension == 24
    np.testing.assert_allclose(embedder.embed(SHORT_TEXTS), reference(folder, SHORT_TEXTS), atol=2e-5)
    assert embedder._packed is None


def test_scores_too_large_for_the_packed_forward_are_computed_by_the_padded_one(tmp_path: Path) -> None:
    folder = write_tiny_bert(tmp_path, attention_scale=3e3)
    embedder = BertEmbedder(model=str(folder), max_length=64, normalise=False, precision="float32")
    vectors = embedder.embed(SHORT_TEXTS)
    assert not embedder._packed.pooled([[2, 5, 6, 7, 3]]).isfinite().all()
    np.testing.assert_allclose(vectors, reference(folder, SHORT_TEXTS), atol=2e-3)


def test_vectors_have_length_one_unless_asked_otherwise(tiny: Path) -> None:
    unit = BertEmbedder(model=str(tiny), max_length=64, precision="float32").embed(SHORT_TEXTS)
    plain = BertEmbedder(model=str(tiny), max_length=64, precision="float32", normalise=False).embed(SHORT_TEXTS)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-5)


def test_wordpieces_beyond_max_length_are_not_read(tiny: Path) -> None:
    embedder = BertEmbedder(model=str(tiny), max_length=5, precision="float32")
    vectors = embedder.embed(["alpha beta gamma", "alpha beta gamma delta", "alpha beta delta"])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3


@pytest.mark.parametrize(
    "option",
    [{"max_length": 32}, {"normalise": False}, {"precision": "float32"}],
    ids=lambda option: next(iter(option)),
)
def test_the_fingerprint_has_every_option_that_changes_a_vector(tiny: Path, option: dict) -> None:
    given = BertEmbedder(**{"model": str(tiny), "max_length": 64, **option}).fingerprint()
    assert given != BertEmbedder(model=str(tiny), max_length=64).fingerprint()


def test_the_fingerprint_does_not_depend_on_place_or_speed(tiny: Path, tmp_path: Path) -> None:
    moved = write_tiny_bert(tmp_path / "elsewhere")
    here = BertEmbedder(model=str(tiny), max_length=64)
    assert (
        BertEmbedder(model=str(moved), max_length=64, device="cpu", batch_tokens=7).fingerprint() == here.fingerprint()
    )


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_bert(tmp_path, spoil_with_nan=True)
    embedder = BertEmbedder(model=str(folder), max_length=64)
    assert np.isfinite(embedder.embed(["beta"])).all()
    with pytest.raises(DamagedDataError, match="not finite"):
        embedder.embed(["alpha"])


def test_a_max_length_the_model_cannot_take_is_refused(tiny: Path) -> None:
    with pytest.raises(UsageError, match=r"embedder\.max_length is 65; .* reads 3 to 64 wordpieces"):
        BertEmbedder(model=str(tiny), max_length=65)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused(tiny: Path) -> None:
    with pytest.raises(UsageError, match="finds no CUDA"):
        BertEmbedder(model=str(tiny), max_length=64, device="cuda")
