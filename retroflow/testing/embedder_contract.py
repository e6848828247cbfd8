"""EmbedderContract: what every embedder owes, as a pytest class to subclass.

    class TestMyEmbedder(EmbedderContract):
        def make_embedder(self): return MyEmbedder(dimension=64)
        def make_other_embedder(self): return MyEmbedder(dimension=64, seed=1)

One test a rule, `test_rule[no_texts_give_no_rows]`; docs/writing-an-embedder.md goes through them. The rules
are the public functions of this module.
"""

import json
import shutil
import sys
import unittest
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from retroflow.errors import RetroflowError
from retroflow.protocols import Embedder, Float32Array
from retroflow.testing.case import Case, doing, refused
from retroflow.testing.contract import Contract
from retroflow.testing.effects import (
    changed_since,
    draw_from_global_generators,
    standard_output,
    state_of_process,
    unusual_settings,
)
from retroflow.testing.readable_options import check_keyword_only, check_readable
from retroflow.testing.stored_files import check_saved_alone, own_surroundings, pickles_in
from retroflow.testing.threads import run_at_once

MANY_TEXTS = 2_048  # of one call in `prepare`
NUM_THREADS = 4
LARGEST_FLOAT16 = 65_504.0
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


class EmbedderCase(Case):
    """Embedders fitted to TEXTS."""

    @cached_property
    def embedder(self) -> Embedder:
        """An embedder fitted to TEXTS."""
        return self.fitted()

    def fitted(self) -> Embedder:
        """A new embedder, fitted to TEXTS, which are handed out once, as those of a corpus are."""
        embedder: Embedder = self.suite.make_embedder()
        embedder.fit(iter(TEXTS))
        return embedder


def _check_close(actual: Float32Array, expected: Float32Array, what: str) -> None:
    """Assert that rows agree but for rounding in bfloat16: within 2 % of a row's length, by L2."""
    assert actual.shape == expected.shape, f"{what}: shapes {actual.shape} and {expected.shape}"
    lengths = np.maximum(np.linalg.norm(expected, axis=1), 1e-6)
    worst = float((np.linalg.norm(actual - expected, axis=1) / lengths).max(initial=0.0))
    assert worst <= TOLERANCE, f"{what}: a row differs by {worst:.2g} of its length"


# What it says of itself.


def implements_the_protocol(case: EmbedderCase) -> None:
    assert isinstance(case.embedder, Embedder), "it lacks a member of retroflow.protocols.Embedder"


def knows_its_dimension_before_any_text_is_embedded(case: EmbedderCase) -> None:
    dimension = case.suite.make_embedder().dimension
    assert isinstance(dimension, int) and dimension > 0, f"dimension is {dimension!r}; give a whole number above 0"


def takes_its_options_by_keyword(case: EmbedderCase) -> None:
    check_keyword_only(type(case.suite.make_embedder()))


def has_options_that_a_recipe_can_read(case: EmbedderCase) -> None:
    """Recipes read options from the source: one that they cannot read does not exist for them."""
    check_readable(type(case.suite.make_embedder()))


def has_a_fingerprint_in_json_that_fitting_does_not_change(case: EmbedderCase) -> None:
    embedder = case.suite.make_embedder()
    before = embedder.fingerprint()
    assert json.loads(json.dumps(before, allow_nan=False)) == before, "fingerprint() must hold JSON values only"
    assert case.suite.make_embedder().fingerprint() == before, "equal options must have equal fingerprints"
    embedder.fit(iter(TEXTS))
    embedder.embed(TEXTS)
    assert embedder.fingerprint() == before, "fingerprint() is called before fit(), which must not change it"


def has_the_same_fingerprint_in_another_process(case: EmbedderCase) -> None:
    here, there = case.embedder.fingerprint(), case.elsewhere(_fingerprint)
    assert here == there, (
        f"fingerprint() is {here} here and {there} in another process: no time, process id, hash() of a string or "
        "order of a set may be in it, or no embeddings are ever used again"
    )


def _fingerprint(case: EmbedderCase) -> dict[str, object]:
    """For another process."""
    values: dict[str, object] = case.suite.make_embedder().fingerprint()
    return values


def has_another_fingerprint_with_an_option_that_changes_vectors(case: EmbedderCase) -> None:
    other = case.suite.make_other_embedder()
    if other is None:
        raise unittest.SkipTest("make_other_embedder() returns None: no option changes vectors")
    assert other.fingerprint() != case.embedder.fingerprint(), (
        "another option that changes vectors, and the same fingerprint: embeddings would be used again that are others"
    )


# What it answers.


def embeds_as_float32_rows_of_the_stated_dimension(case: EmbedderCase) -> None:
    vectors = case.embedder.embed(TEXTS)
    assert vectors.dtype == np.float32, f"embed() returns {vectors.dtype}; return float32"
    wanted = (len(TEXTS), case.embedder.dimension)
    assert vectors.shape == wanted, f"embed() returns {list(vectors.shape)}; {list(wanted)} is one row a text"
    assert np.abs(vectors).max() <= LARGEST_FLOAT16, "vectors are stored as float16, which holds at most 65,504"


def no_texts_give_no_rows(case: EmbedderCase) -> None:
    assert case.embedder.embed([]).shape == (0, case.embedder.dimension), "embed([]) must have shape [0, dimension]"


def rows_keep_the_order_of_the_texts(case: EmbedderCase) -> None:
    order = [3, 0, 6, 2, 5, 1, 4]
    shuffled = case.embedder.embed([TEXTS[row] for row in order])
    _check_close(shuffled, case.embedder.embed(TEXTS)[order], "texts in another order")


def a_text_alone_gets_the_vector_it_gets_in_a_batch(case: EmbedderCase) -> None:
    alone = np.concatenate([case.embedder.embed([text]) for text in TEXTS])
    _check_close(alone, case.embedder.embed(TEXTS), "texts alone and in a batch")


def embeds_2048_texts_as_a_few_at_a_time(case: EmbedderCase) -> None:
    texts = [f"{TEXTS[number % len(TEXTS)]} {number % 60}" for number in range(MANY_TEXTS)]
    rows = [0, 1, 2, 63, 64, 255, 256, 511, 512, 1_023, 1_024, MANY_TEXTS - 1]
    few = case.embedder.embed([texts[row] for row in rows])
    _check_close(case.embedder.embed(texts)[rows], few, f"{MANY_TEXTS} texts at once and {len(rows)} of them")


def equal_texts_get_equal_vectors_and_different_texts_different_ones(case: EmbedderCase) -> None:
    vectors = case.embedder.embed([*TEXTS, TEXTS[0]])
    _check_close(vectors[-1:], vectors[:1], "the same text twice in a batch")
    distances = np.linalg.norm(vectors[:-1, None] - vectors[None, :-1], axis=2)
    assert (distances[~np.eye(len(TEXTS), dtype=bool)] > TOLERANCE).all(), "different texts get the same vector"


def related_texts_are_nearer_than_unrelated_ones(case: EmbedderCase) -> None:
    vectors = case.embedder.embed(TEXTS)
    related, unrelated = np.linalg.norm(vectors[2] - vectors[5]), np.linalg.norm(vectors[2] - vectors[6])
    assert related < unrelated, f'"{TEXTS[2]}" is nearer to "{TEXTS[6]}" than to "{TEXTS[5]}"'


def the_same_call_gives_the_same_bytes(case: EmbedderCase) -> None:
    first, again = case.embedder.embed(TEXTS), case.embedder.embed(TEXTS)
    assert np.array_equal(first, again), "the same call, twice, gives other vectors"


def embedding_other_texts_in_between_changes_nothing(case: EmbedderCase) -> None:
    before = case.embedder.embed(TEXTS)
    kept = before.copy()
    case.embedder.embed(["something else entirely"] * len(TEXTS))
    assert np.array_equal(before, kept), "the next call changed an array that an earlier one had returned"
    assert np.array_equal(kept, case.embedder.embed(TEXTS)), "after other texts the same call gives other vectors"


def an_unusual_text_gets_a_finite_vector(case: EmbedderCase) -> None:
    expected = case.embedder.embed(TEXTS[:1])
    for text in UNUSUAL_TEXTS:
        with doing(f"the text {ascii(text)[:60]}"):
            vectors = case.embedder.embed([text, TEXTS[0]])
            assert np.isfinite(vectors).all(), "its vector is not finite; every text has one, an empty one too"
            _check_close(vectors[1:], expected, "a text beside an unusual one")


def leaves_the_texts_as_they_were(case: EmbedderCase) -> None:
    texts = list(TEXTS)
    case.embedder.embed(texts)
    assert texts == TEXTS, "embed() changed the list of texts it was given"


def refuses_what_is_no_string(case: EmbedderCase) -> None:
    for wrong in (None, 7, b"bytes"):
        with doing(f"a text that is {wrong!r}"), refused(RetroflowError, type(wrong).__name__):
            case.embedder.embed(["text", wrong])  # type: ignore[list-item]


# What it learns and stores.


def fitting_again_replaces_what_was_learned(case: EmbedderCase) -> None:
    embedder = case.suite.make_embedder()
    embedder.fit(text * 2 for text in TEXTS[2:])
    embedder.fit(iter(TEXTS))
    _check_close(embedder.embed(TEXTS), case.embedder.embed(TEXTS), "fitted again, and by a new embedder")


def embeds_alike_when_fitted_in_another_process(case: EmbedderCase) -> None:
    folder = case.scratch()
    case.elsewhere(_fit_and_embed, {"folder": str(folder)})
    there = np.load(folder / "vectors.npy")
    _check_close(there, case.embedder.embed(TEXTS), "fitted in another process, with another PYTHONHASHSEED")


def _fit_and_embed(case: EmbedderCase, folder: str) -> None:
    """For another process: fit, and write the vectors of TEXTS."""
    np.save(Path(folder) / "vectors.npy", case.fitted().embed(TEXTS))


def a_saved_embedder_embeds_alike_in_another_process(case: EmbedderCase) -> None:
    """Nothing but the folder is left: what was written beside it, or is known to this process, is missed."""
    origin, moved = case.scratch(), case.scratch()
    (origin / "parent" / "state").mkdir(parents=True)
    with own_surroundings(origin):
        case.embedder.save(origin / "parent" / "state")
    shutil.move(origin / "parent" / "state", moved / "state")
    shutil.rmtree(origin)
    case.elsewhere(_load_and_embed, {"folder": str(moved)})
    there = np.load(moved / "vectors.npy")
    _check_close(there, case.embedder.embed(TEXTS), "saved, moved and loaded by another process")


def _load_and_embed(case: EmbedderCase, folder: str) -> None:
    """For another process: load, and write the vectors of TEXTS."""
    embedder = case.suite.make_embedder()
    embedder.load(Path(folder) / "state")
    np.save(Path(folder) / "vectors.npy", embedder.embed(TEXTS))


def loading_replaces_what_was_learned(case: EmbedderCase) -> None:
    folder = case.scratch()
    case.embedder.save(folder)
    used = case.suite.make_embedder()
    used.fit(text * 2 for text in TEXTS[2:])
    used.embed(TEXTS)
    used.load(folder)
    _check_close(used.embed(TEXTS), case.embedder.embed(TEXTS), "loaded by a used embedder")


def writes_into_its_folder_alone_and_no_pickle(case: EmbedderCase) -> None:
    def save(folder: Path) -> None:
        folder.mkdir()
        case.embedder.save(folder)

    folder = case.scratch() / "parent" / "state"
    check_saved_alone(save, folder)
    pickles = pickles_in(folder)
    assert not pickles, f"save() writes pickles: {pickles[:3]}; write arrays (numpy.save of numbers) and JSON"


# Where it runs.


def threads_can_embed_at_once(case: EmbedderCase) -> None:
    """Each thread with texts of its own."""
    jobs = [TEXTS[thread:] + UNUSUAL_TEXTS[:thread] for thread in range(NUM_THREADS)]
    expected = [case.embedder.embed(texts) for texts in jobs]

    def embed(number: int) -> None:
        _check_close(case.embedder.embed(jobs[number]), expected[number], "alone and beside other threads")

    calls = [partial(embed, number) for number in range(NUM_THREADS)]
    fault = run_at_once(calls, type(case.embedder), times=4)
    assert fault is None, f"several threads embed at once; keep no text of a call on self: {fault!r}"


def leaves_the_process_as_it_was(case: EmbedderCase) -> None:
    """Nothing on stdout, which belongs to `--json`; no global generator used or seeded, no setting changed."""
    folder = case.scratch()
    case.embedder.embed(TEXTS)  # what is imported at the first call may be
    draw_from_global_generators()
    with unusual_settings(case.scratch()), standard_output() as written:
        before = state_of_process()
        embedder = case.fitted()
        embedder.embed(TEXTS)
        embedder.save(folder)
        case.suite.make_embedder().load(folder)
        said = written()
        changed = changed_since(before)
    assert not said, f"it prints to stdout: {said[:200]!r}; log to stderr, or nothing"
    assert not changed, f"it changed {' and '.join(changed)}; use a generator of your own and put settings back"


class EmbedderContract(Contract):
    """Subclass it as a class whose name starts with Test, and override `make_embedder`."""

    rule_modules = (sys.modules[__name__],)
    case_class = EmbedderCase

    def make_embedder(self) -> Embedder:
        """Return a new embedder, always with the same options; called often, so give the smallest that will do.

        Called in other processes too: use no fixture.
        """
        raise NotImplementedError("override make_embedder() in your subclass of EmbedderContract")

    def make_other_embedder(self) -> Embedder | None:
        """Return one that differs in an option that changes vectors; None if there is no such option."""
        return None
