"""What a retriever is given: layouts, dtypes and tensors it takes, and bad input, which never reaches it."""

import numpy as np

from retroflow.errors import InvalidVectorsError, RetrieverError
from retroflow.testing.case import doing, refused
from retroflow.testing.retriever_rules.case import RetrieverCase
from retroflow.testing.retriever_rules.expected import check_equal
from retroflow.testing.retriever_rules.inputs import BAD_K, BAD_QUERIES, LAYOUTS, bad_vectors

TORCH_DTYPES = ("float16", "bfloat16", "float32", "float64")


def takes_any_float_dtype_and_memory_layout(case: RetrieverCase) -> None:
    queries = case.query_vectors.astype(np.float16).astype(np.float32)
    expected = case.built.search(queries, 3)
    for layout, arranged in LAYOUTS.items():
        with doing(f"queries as {layout}" + ("; search() must take them" if layout == "read_only" else "")):
            check_equal(case.built.search(arranged(queries), 3), expected, f"queries as {layout}")


def takes_torch_tensors(case: RetrieverCase) -> None:
    import torch

    for dtype in TORCH_DTYPES:
        tensor = torch.from_numpy(case.vectors.copy()).to(getattr(torch, dtype))
        same = tensor.float().numpy()
        given, expected = case.build(tensor).search(tensor[:20], 3), case.build(same).search(same[:20], 3)
        if case.new().capabilities.deterministic:
            check_equal(given, expected, f"torch {dtype} and the same as numpy float32")
        assert given.ids.shape == expected.ids.shape


def takes_a_numpy_integer_as_k(case: RetrieverCase) -> None:
    wide, plain = case.built.search(case.queries, np.int64(3)), case.built.search(case.queries, 3)
    check_equal(wide, plain, "k as int64 and as int")


def leaves_vectors_and_queries_as_they_were(case: RetrieverCase) -> None:
    vectors, queries = case.vectors.copy(), case.queries.copy()
    case.build(vectors).search(queries, 3)
    assert np.array_equal(vectors, case.vectors), "build() changed the vectors it was given"
    assert np.array_equal(queries, case.queries), "search() changed the queries it was given"


def refuses_bad_queries_and_goes_on(case: RetrieverCase) -> None:
    case.skip_unless_by_vectors()
    for name, bad in BAD_QUERIES.items():
        with doing(f"queries: {name}"):
            with refused(InvalidVectorsError):
                case.built.search(bad(case.suite.dimension), 3)
            assert case.built.search(case.queries[:1], 3).ids.shape == (1, 3)


def refuses_a_k_that_is_no_positive_integer(case: RetrieverCase) -> None:
    for k in BAD_K:
        with doing(f"k = {k!r}"), refused(InvalidVectorsError, "k must be"):
            case.built.search(case.queries, k)


def refuses_bad_vectors_before_native_code_can_die_of_them(case: RetrieverCase) -> None:
    for name, bad in bad_vectors(case.vectors).items():
        with doing(f"vectors: {name}"), refused(InvalidVectorsError):
            case.build(bad).search(case.queries, 5)


def has_nothing_to_search_or_save_before_it_is_built(case: RetrieverCase) -> None:
    with doing("search() before build()"), refused(RetrieverError):
        case.new().search(case.queries, 5)
    with doing("save() before build()"), refused(RetrieverError):
        case.new().save(case.scratch() / "unbuilt")
