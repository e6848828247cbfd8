"""EmbedderContract fails every embedder that is wrong in one way, by the rule that says why."""

import os
import pickle
import random
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retroflow.embedding.lexical import LexicalEmbedder
from retroflow.protocols import Embedder
from retroflow.testing import EmbedderContract
from retroflow.testing.contract import RuleRunner
from retroflow.testing.embedder_contract import EmbedderCase
from retroflow.testing.rule_process import RuleProcess, other_hash_seed, outcome_of

Vectors = np.ndarray
RULES = EmbedderContract.rules()


class Right(LexicalEmbedder):
    """Small, and correct in everything."""

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(dimension=64, buckets=1024, seed=seed)


class Float64(Right):
    def embed(self, texts: list[str]) -> Vectors:
        return super().embed(texts).astype(np.float64)


class Narrow(Right):
    def embed(self, texts: list[str]) -> Vectors:
        return super().embed(texts)[:, :-1]


class TooLarge(Right):
    def embed(self, texts: list[str]) -> Vectors:
        return super().embed(texts) * np.float32(1e6)


class Sorted(Right):
    def embed(self, texts: list[str]) -> Vectors:
        vectors = super().embed(texts)
        return vectors[np.argsort(vectors[:, 0])]


class Centred(Right):
    def embed(self, texts: list[str]) -> Vectors:
        vectors = super().embed(texts)
        return vectors - vectors.mean(axis=0) if len(vectors) else vectors


class AtMost1000(Right):
    def embed(self, texts: list[str]) -> Vectors:
        vectors = super().embed(texts)
        vectors[1_000:] = vectors[:1]
        return vectors


class Counting(Right):
    def embed(self, texts: list[str]) -> Vectors:
        self.calls = getattr(self, "calls", 0) + 1
        return super().embed(texts) + np.float32(1e-6 * self.calls)


class Constant(Right):
    def embed(self, texts: list[str]) -> Vectors:
        return np.ones_like(super().embed(texts))


class NoneForEmpty(Right):
    def embed(self, texts: list[str]) -> Vectors:
        vectors = super().embed(texts)
        vectors[[row for row, text in enumerate(texts) if not text]] = np.nan
        return vectors


class SharedArray(Right):
    def embed(self, texts: list[str]) -> Vectors:
        kept = self.__dict__.setdefault("kept", {})
        vectors = super().embed(texts)
        kept.setdefault(len(texts), vectors)[:] = vectors
        return kept[len(texts)]


class ChangesTexts(Right):
    def embed(self, texts: list[str]) -> Vectors:
        texts.sort()
        return super().embed(texts)


class TextsOnSelf(Right):
    def embed(self, texts: list[str]) -> Vectors:
        self.texts = texts
        time.sleep(0.002)
        halves = [super().embed(self.texts[: len(texts) // 2]), super().embed(self.texts[len(texts) // 2 :])]
        return np.concatenate(halves)


class ForgetsWhatItLearned(Right):
    def load(self, folder: Path) -> None:
        """Read nothing."""


class LoadKeepsTheOld(Right):
    def load(self, folder: Path) -> None:
        if not self._num_texts:
            super().load(folder)


class FitAdds(Right):
    def fit(self, texts: Iterable[str]) -> None:
        self.seen = [*getattr(self, "seen", []), *texts]
        super().fit(self.seen)


class ByHash(Right):
    def embed(self, texts: list[str]) -> Vectors:
        turn = np.random.default_rng(hash("seed") % 2**32).permutation(64)
        return super().embed(texts)[:, turn]


class HashInFingerprint(Right):
    def fingerprint(self) -> dict[str, object]:
        return {**super().fingerprint(), "options": hash("x")}


class SameFingerprint(Right):
    def fingerprint(self) -> dict[str, object]:
        return {"embedder": "same"}


class NumTextsInFingerprint(Right):
    def fingerprint(self) -> dict[str, object]:
        return {**super().fingerprint(), "texts": self._num_texts}


class ComputedDefault(Right):
    def __init__(self, *, seed: int = len("")) -> None:
        super().__init__(seed=seed)


class Positional(Right):
    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)


class Prints(Right):
    def fit(self, texts: Iterable[str]) -> None:
        print("fitting")
        super().fit(texts)


class Seeds(Right):
    def embed(self, texts: list[str]) -> Vectors:
        random.seed(0)
        return super().embed(texts)


class Pickles(Right):
    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "state.pkl").write_bytes(pickle.dumps(self._texts_with_bucket))


class SavesBeside(Right):
    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder.parent / "state.json").write_text("{}")


class Exits(Right):
    def embed(self, texts: list[str]) -> Vectors:
        sys.exit(0)


class Leaves(Right):
    def embed(self, texts: list[str]) -> Vectors:
        os._exit(0)


WRONG = [
    (Float64, "embeds_as_float32_rows_of_the_stated_dimension"),
    (Narrow, "embeds_as_float32_rows_of_the_stated_dimension"),
    (TooLarge, "embeds_as_float32_rows_of_the_stated_dimension"),
    (Sorted, "rows_keep_the_order_of_the_texts"),
    (Centred, "a_text_alone_gets_the_vector_it_gets_in_a_batch"),
    (AtMost1000, "embeds_2048_texts_as_a_few_at_a_time"),
    (Counting, "the_same_call_gives_the_same_bytes"),
    (Constant, "equal_texts_get_equal_vectors_and_different_texts_different_ones"),
    (NoneForEmpty, "an_unusual_text_gets_a_finite_vector"),
    (SharedArray, "embedding_other_texts_in_between_changes_nothing"),
    (ChangesTexts, "leaves_the_texts_as_they_were"),
    (TextsOnSelf, "threads_can_embed_at_once"),
    (ForgetsWhatItLearned, "a_saved_embedder_embeds_alike_in_another_process"),
    (LoadKeepsTheOld, "loading_replaces_what_was_learned"),
    (FitAdds, "fitting_again_replaces_what_was_learned"),
    (ByHash, "embeds_alike_when_fitted_in_another_process"),
    (HashInFingerprint, "has_the_same_fingerprint_in_another_process"),
    (SameFingerprint, "has_another_fingerprint_with_an_option_that_changes_vectors"),
    (NumTextsInFingerprint, "has_a_fingerprint_in_json_that_fitting_does_not_change"),
    (ComputedDefault, "has_options_that_a_recipe_can_read"),
    (Positional, "takes_its_options_by_keyword"),
    (Prints, "leaves_the_process_as_it_was"),
    (Seeds, "leaves_the_process_as_it_was"),
    (Pickles, "writes_into_its_folder_alone_and_no_pickle"),
    (SavesBeside, "writes_into_its_folder_alone_and_no_pickle"),
    (Exits, "no_texts_give_no_rows"),
]


class Suite(EmbedderContract):
    """A suite of the embedder class that its subclass names; made for each class, and found by name elsewhere."""

    __test__ = False
    of: Any = Right

    def make_embedder(self) -> Embedder:
        return self.of()

    def make_other_embedder(self) -> Embedder:
        return self.of(seed=1)


for _class in [Right, Leaves, *(row[0] for row in WRONG)]:
    _name = f"Suite{_class.__name__}"
    globals()[_name] = type(_name, (Suite,), {"of": _class, "__module__": __name__})


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[RuleProcess]:
    process = RuleProcess(other_hash_seed())
    yield process
    process.close()


def case_of(embedder: type, folder: Path, elsewhere: RuleProcess) -> EmbedderCase:
    return EmbedderCase(globals()[f"Suite{embedder.__name__}"](), folder, elsewhere)


@pytest.mark.parametrize(("embedder", "rule"), WRONG, ids=lambda value: getattr(value, "__name__", value))
def test_a_wrong_embedder_fails_its_rule(embedder: type, rule: str, tmp_path: Path, elsewhere: RuleProcess) -> None:
    outcome, message = outcome_of(lambda: RULES[rule](case_of(embedder, tmp_path, elsewhere)))
    assert outcome == "failed", f"{embedder.__name__} passes {rule}: {message}"


def test_a_right_embedder_passes_all_rules(tmp_path: Path, elsewhere: RuleProcess) -> None:
    case = case_of(Right, tmp_path, elsewhere)
    outcomes = {name: outcome_of(lambda rule=rule: rule(case)) for name, rule in RULES.items()}
    assert not {name: said for name, (outcome, said) in outcomes.items() if outcome != "ok"}


def test_what_ends_the_process_fails_the_rule_by_name() -> None:
    with (
        RuleRunner(globals()["SuiteLeaves"]) as runner,
        pytest.raises(AssertionError, match="no_texts_give_no_rows: ended the process .exit status 0"),
    ):
        runner.run(RULES["no_texts_give_no_rows"])


def test_a_suite_without_make_embedder_says_so() -> None:
    with pytest.raises(NotImplementedError, match="override make_embedder"):
        EmbedderContract().make_embedder()
