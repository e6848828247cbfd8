"""The rules every embedder keeps, as a pytest class to subclass.

    class TestMyEmbedder(EmbedderContract):
        def make_embedder(self): return MyEmbedder(dimension=64)
        def make_other_embedder(self): return MyEmbedder(dimension=64, seed=1)

docs/writing-an-embedder.md goes through the rules.
"""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retroflow.errors import RetroflowError
from retroflow.protocols import Embedder

TEXTS = [
    "def forward(self, hidden_states, attention_mask):",
    "    hidden_states = self.norm(hidden_states)",
    "The retrieval database holds the chunks of every document.",
    "return residual + hidden_states",
    "a",
    "The retrieval database holds the embeddings of every chunk.",
    "for layer in self.layers: states = layer(states, mask)",
]
UNUSUAL_TEXTS = [
    "",
    "   \n\t  ",
    "\x00",
    "before\x00after",
    "gr\u00fc\u00dfe \u4f60\u597d \U0001f600 e\u0301",
    "\u202eright to left",
    "\ud800 a lone surrogate",
    "word" * 5000,
]
TOLERANCE = 2e-2

NEW_PROCESS = """
import pickle, sys
import numpy as np
folder = sys.argv[1]
with open(folder + "/embedder.pickle", "rb") as file:
    make, texts = pickle.load(file)
embedder = make()
from pathlib import Path
embedder.load(Path(folder) / "state")
np.save(folder + "/vectors.npy", embedder.embed(texts))
"""


class EmbedderContract:
    """Subclass it as a class whose name starts with Test, and override `make_embedder`."""

    def make_embedder(self) -> Embedder:
        """Return a new embedder; called often, so give the smallest that shows the rules."""
        raise NotImplementedError("override make_embedder() in your subclass of EmbedderContract")

    def make_other_embedder(self) -> Embedder | None:
        """Return one that differs in an option that changes vectors; None if there is no such option."""
        return None

    @pytest.fixture
    def embedder(self) -> Embedder:
        """An embedder that has been fitted."""
        embedder = self.make_embedder()
        embedder.fit(iter(TEXTS))
        return embedder

    def test_satisfies_the_protocol(self, embedder: Embedder) -> None:
        assert isinstance(embedder, Embedder)

    def test_dimension_is_known_before_any_text_is_embedded(self) -> None:
        dimension = self.make_embedder().dimension
        assert isinstance(dimension, int)
        assert dimension > 0

    def test_embed_returns_float32_rows_of_the_stated_dimension(self, embedder: Embedder) -> None:
        vectors = embedder.embed(TEXTS)
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(TEXTS), embedder.dimension)

    def test_no_texts_give_no_rows(self, embedder: Embedder) -> None:
        assert embedder.embed([]).shape == (0, embedder.dimension)

    def test_rows_keep_the_order_of_the_texts(self, embedder: Embedder) -> None:
        order = [3, 0, 6, 2, 5, 1, 4]
        shuffled = embedder.embed([TEXTS[row] for row in order])
        assert_close(shuffled, embedder.embed(TEXTS)[order])

    def test_a_text_alone_gets_the_vector_it_gets_in_a_batch(self, embedder: Embedder) -> None:
        alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
        assert_close(alone, embedder.embed(TEXTS))

    def test_equal_texts_get_equal_vectors_and_different_texts_different_ones(self, embedder: Embedder) -> None:
        vectors = embedder.embed([*TEXTS, TEXTS[0]])
        assert_close(vectors[-1:], vectors[:1])
        distances = np.linalg.norm(vectors[:-1, None] - vectors[None, :-1], axis=2)
        assert (distances[~np.eye(len(TEXTS), dtype=bool)] > TOLERANCE).all()

    def test_related_texts_are_nearer_than_unrelated_ones(self, embedder: Embedder) -> None:
        vectors = embedder.embed(TEXTS)
        related = np.linalg.norm(vectors[2] - vectors[5])
        assert related < np.linalg.norm(vectors[2] - vectors[6])

    def test_the_same_call_gives_the_same_bytes(self, embedder: Embedder) -> None:
        assert np.array_equal(embedder.embed(TEXTS), embedder.embed(TEXTS))

    def test_embedding_other_texts_in_between_changes_nothing(self, embedder: Embedder) -> None:
        keys = embedder.embed(TEXTS)
        embedder.embed(["something else entirely"] * 3)
        assert np.array_equal(keys, embedder.embed(TEXTS))

    @pytest.mark.parametrize("text", UNUSUAL_TEXTS, ids=ascii)
    def test_an_unusual_text_gets_a_finite_vector(self, embedder: Embedder, text: str) -> None:
        vectors = embedder.embed([text, TEXTS[0]])
        assert np.isfinite(vectors).all()
        assert_close(vectors[1:], embedder.embed(TEXTS[:1]))

    def test_the_texts_are_left_as_they_were(self, embedder: Embedder) -> None:
        texts = list(TEXTS)
        embedder.embed(texts)
        assert texts == TEXTS

    @pytest.mark.parametrize("wrong", [None, 7, b"bytes"], ids=repr)
    def test_a_text_that_is_no_string_is_refused(self, embedder: Embedder, wrong: object) -> None:
        with pytest.raises(RetroflowError, match=type(wrong).__name__):
            embedder.embed(["text", wrong])  # type: ignore[list-item]

    def test_a_saved_embedder_embeds_alike_in_a_new_process(self, embedder: Embedder, tmp_path: Path) -> None:
        keys = embedder.embed(TEXTS)
        (tmp_path / "state").mkdir()
        embedder.save(tmp_path / "state")
        (tmp_path / "embedder.pickle").write_bytes(pickle.dumps((type(self)().make_embedder, TEXTS)))
        paths = [sys.path[0], str(Path(sys.modules[type(self).__module__].__file__ or "").parent), *sys.path]
        script = f"import sys; sys.path[:0] = {paths!r}\n{NEW_PROCESS}"
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=120)
        assert_close(np.load(tmp_path / "vectors.npy"), keys)

    def test_the_fingerprint_is_json_and_the_same_for_the_same_options(self, embedder: Embedder) -> None:
        fingerprint = embedder.fingerprint()
        assert json.loads(json.dumps(fingerprint)) == fingerprint
        assert self.make_embedder().fingerprint() == fingerprint

    def test_the_fingerprint_differs_with_an_option_that_changes_vectors(self, embedder: Embedder) -> None:
        other = self.make_other_embedder()
        if other is None:
            pytest.skip("make_other_embedder() returned None: no option changes vectors")
        assert other.fingerprint() != embedder.fingerprint()


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Assert that rows agree but for rounding in bfloat16: within 2 % of a row's length, by L2."""
    lengths = np.maximum(np.linalg.norm(expected, axis=1), 1e-6)
    distances = np.linalg.norm(actual - expected, axis=1)
    assert (distances <= TOLERANCE * lengths).all(), f"rows differ by {distances / lengths} of their length"
