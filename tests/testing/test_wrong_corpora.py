"""CorpusContract fails every corpus that is wrong in one way, by the rule that says why."""

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retroflow.corpus.duplicates import distinct_documents
from retroflow.corpus.split import choose_split
from retroflow.protocols import Corpus, Counts, Document
from retroflow.testing import CorpusContract
from retroflow.testing.corpus_contract import CorpusCase
from retroflow.testing.rule_process import RuleProcess, other_hash_seed, outcome_of

RULES = CorpusContract.rules()


class Right(Corpus):
    """Twelve documents, one of them twice."""

    def __init__(self, *, valid_share: float = 0.4) -> None:
        self.valid_share = valid_share
        self.counts = Counts()

    def documents(self) -> Iterator[Document]:
        self.counts = Counts()
        return distinct_documents(self.read(), self.counts, place="corpus", valid_share=self.valid_share)

    def read(self) -> Iterator[Document]:
        for number in [*range(12), 3]:
            id = f"note {number}"
            yield Document(id, id, f"text of {id}", f"notes:{number}", choose_split(id, self.valid_share))

    def fingerprint(self) -> dict[str, object]:
        return {"version": 1, "valid_share": self.valid_share}


class WithoutCounts(Right):
    def __init__(self, *, valid_share: float = 0.4) -> None:
        self.valid_share, self.counts = valid_share, {}


class Positional(Right):
    def __init__(self, valid_share: float = 0.4) -> None:
        super().__init__(valid_share=valid_share)


class ComputedDefault(Right):
    def __init__(self, *, valid_share: float = len("abc") / 10) -> None:
        super().__init__(valid_share=valid_share)


class NamesOthers(Right):
    held_out_by = ("valid_path",)


class WithBlankTitles(Right):
    def read(self) -> Iterator[Document]:
        return (dataclasses.replace(document, title="") for document in super().read())


class WithSurrogates(Right):
    def read(self) -> Iterator[Document]:
        return (dataclasses.replace(document, id=document.id + "\ud800") for document in super().read())


class AllTraining(Right):
    def documents(self) -> Iterator[Document]:
        return (dataclasses.replace(document, split="train") for document in super().documents())


class WithCopies(Right):
    def documents(self) -> Iterator[Document]:
        return self.read()


class CountsOn(Right):
    def documents(self) -> Iterator[Document]:
        return distinct_documents(self.read(), self.counts, place="corpus", valid_share=self.valid_share)


class CountsNothing(Right):
    def documents(self) -> Iterator[Document]:
        return distinct_documents(self.read(), Counts(), place="corpus", valid_share=self.valid_share)


class Shuffled(Right):
    def documents(self) -> Iterator[Document]:
        documents = list(super().documents())
        random.Random().shuffle(documents)
        return iter(documents)


class ReadsOnce(Right):
    stream: Iterator[Document] | None = None

    def read(self) -> Iterator[Document]:
        self.stream = self.stream or super().read()
        return self.stream


class SplitByHash(Right):
    def read(self) -> Iterator[Document]:
        for document in super().read():
            yield dataclasses.replace(document, split="valid" if hash(document.id) % 2 else "train")


class FingerprintOfCounts(Right):
    def fingerprint(self) -> dict[str, object]:
        return {"documents": self.counts.train}


class FingerprintByHash(Right):
    def fingerprint(self) -> dict[str, object]:
        return {"options": hash("valid_share")}


class Prints(Right):
    def read(self) -> Iterator[Document]:
        print("reading")
        return super().read()


class Seeds(Right):
    def read(self) -> Iterator[Document]:
        random.seed(0)
        return super().read()


WRONG = [
    (WithoutCounts, "implements_the_protocol"),
    (Positional, "takes_its_options_by_keyword"),
    (ComputedDefault, "has_options_that_a_recipe_can_read"),
    (NamesOthers, "names_options_that_it_has"),
    (WithBlankTitles, "yields_documents"),
    (WithSurrogates, "yields_documents"),
    (AllTraining, "has_text_to_train_and_to_validate_on"),
    (WithCopies, "leaves_out_exact_copies"),
    (CountsNothing, "counts_what_it_yields"),
    (CountsOn, "two_passes_give_the_same_documents"),
    (Shuffled, "two_passes_give_the_same_documents"),
    (ReadsOnce, "a_pass_that_is_left_early_changes_nothing"),
    (SplitByHash, "another_process_reads_the_same_documents"),
    (FingerprintOfCounts, "has_a_fingerprint_in_json_that_reading_does_not_change"),
    (FingerprintByHash, "has_a_fingerprint_in_json_that_reading_does_not_change"),
    (Prints, "leaves_the_process_as_it_was"),
    (Seeds, "leaves_the_process_as_it_was"),
]


class Suite(CorpusContract):
    """A suite of the class that its subclass names; made for each class, and found by name elsewhere."""

    __test__ = False
    of: Any = Right

    def make_corpus(self) -> Corpus:
        return self.of()


for _class in [Right, *(row[0] for row in WRONG)]:
    _name = f"Suite{_class.__name__}"
    globals()[_name] = type(_name, (Suite,), {"of": _class, "__module__": __name__})


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[RuleProcess]:
    process = RuleProcess(other_hash_seed())
    yield process
    process.close()


@pytest.mark.parametrize(("corpus", "rule"), WRONG, ids=lambda value: getattr(value, "__name__", value))
def test_a_wrong_corpus_fails_its_rule(corpus: type, rule: str, tmp_path: Path, elsewhere: RuleProcess) -> None:
    case = CorpusCase(globals()[f"Suite{corpus.__name__}"](), tmp_path, elsewhere)
    outcome, message = outcome_of(lambda: RULES[rule](case))
    assert outcome == "failed", f"{corpus.__name__} passes {rule}: {message}"


def test_a_right_corpus_passes_all_rules(tmp_path: Path, elsewhere: RuleProcess) -> None:
    case = CorpusCase(globals()["SuiteRight"](), tmp_path, elsewhere)
    outcomes = {name: outcome_of(lambda rule=rule: rule(case)) for name, rule in RULES.items()}
    assert not {name: said for name, (outcome, said) in outcomes.items() if outcome != "ok"}
    assert {rule for _, rule in WRONG} == set(RULES), "every rule is seen failing"
