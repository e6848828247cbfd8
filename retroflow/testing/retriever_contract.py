"""RetrieverContract: what every retriever owes, as a pytest class to subclass.

    class TestMyRetriever(RetrieverContract):
        def make_retriever(self):
            return MyRetriever()

runs all of it: one test a rule, `test_rule[threads_can_search_at_once]`. Rules about what `capabilities` do not promise
skip themselves; every failure says which rule was broken. The rules are in `retroflow.testing.retriever_rules`.
"""

from typing import ClassVar

from retroflow.protocols import Float32Array, Retriever
from retroflow.testing.contract import Contract
from retroflow.testing.retriever_rules import answers, changes, declaration, given, instances, sizes, storage, texts
from retroflow.testing.retriever_rules.case import RetrieverCase
from retroflow.testing.retriever_rules.library_embeddings import library_embeddings


class RetrieverContract(Contract):
    """Subclass it in a test module, name the class Test..., and override `make_retriever`.

    Attributes:
        recall_floor: least recall@10 against exact search on clustered vectors (and recall@2 on `embeddings`).
        score_tolerance: largest difference between a score and the true one, for scores up to 1; relative above.
        dimension: width D of the vectors of most rules.
        num_vectors: N; enough for an approximate index to be one.
    """

    rule_modules = (declaration, answers, texts, sizes, given, instances, storage, changes)
    case_class = RetrieverCase

    recall_floor: ClassVar[float] = 0.95
    score_tolerance: ClassVar[float] = 1e-3
    dimension: ClassVar[int] = 32
    num_vectors: ClassVar[int] = 2_000
    seconds: ClassVar[float] = 90.0

    def make_retriever(self) -> Retriever:
        """Return a new retriever, always with the same options. Called in other processes: use no fixture."""
        raise NotImplementedError("override make_retriever() in your subclass of RetrieverContract")

    def make_retriever_searching_differently(self) -> Retriever | None:
        """Return one with the same build options and other search options, None if there are no search options.

        It must have the same fingerprint, and must open and search the index that `make_retriever` built: so does
        retroflow when a recipe changes only a search option.
        """
        return None

    def embeddings(self) -> Float32Array:
        """Return real embeddings float32 [N, D] to measure recall@2 on.

        These are of Python's own library, by the lexical embedder. For those of another corpus and embedder, run
        `retroflow prepare` and return `numpy.load("artifacts/embeddings-.../train/embeddings.npy").astype("float32")`.
        """
        return library_embeddings()
