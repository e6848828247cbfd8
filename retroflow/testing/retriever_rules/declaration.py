"""What a retriever says about itself: protocol, capabilities, options, fingerprint."""

import json
import unittest

import numpy as np

from retroflow.protocols import Neighbours, Retriever
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.retrieval.keys import checked_keys, checked_queries
from retroflow.testing.readable_options import check_keyword_only, check_readable
from retroflow.testing.retriever_rules.case import OWNER, RetrieverCase
from retroflow.testing.retriever_rules.expected import check_equal, true_scores


def implements_the_protocol_and_declares_its_capabilities(case: RetrieverCase) -> None:
    retriever = case.suite.make_retriever()
    assert isinstance(retriever, Retriever), "it lacks a member of retroflow.protocols.Retriever"
    capabilities = case.new().capabilities
    assert case.built.capabilities == capabilities, "capabilities are read before build(), which must not change them"
    folder = case.scratch() / "index"
    case.built.search(case.queries, 1)
    case.built.save(folder)
    assert case.built.capabilities == case.opened(folder).capabilities == capabilities, (
        "capabilities must not change by search() or load()"
    )
    for field in ("exact", "deterministic", "fork_safe", "add", "remove", "erases"):
        value = getattr(capabilities, field)
        assert isinstance(value, bool), f"capabilities.{field} is {value!r}; give True or False"


def takes_its_options_by_keyword(case: RetrieverCase) -> None:
    check_keyword_only(type(case.suite.make_retriever()))


def has_options_that_a_recipe_can_read(case: RetrieverCase) -> None:
    """Recipes read options from the source: one that they cannot read does not exist for them."""
    check_readable(type(case.suite.make_retriever()))


def has_a_fingerprint_in_json_that_building_does_not_change(case: RetrieverCase) -> None:
    retriever = case.suite.make_retriever()
    before = json.dumps(retriever.fingerprint(), sort_keys=True, allow_nan=False)
    again = json.dumps(case.suite.make_retriever().fingerprint(), sort_keys=True)
    assert before == again, "two retrievers with equal options must have equal fingerprints"
    retriever.build(checked_keys(case.keys, retriever.capabilities))
    after = json.dumps(retriever.fingerprint(), sort_keys=True)
    assert before == after, "fingerprint() is called before build(), which must not change it"
    folder = case.scratch()
    queries = checked_queries(case.queries, retriever.capabilities, case.suite.dimension)
    retriever.search(queries, 1)
    retriever.save(folder)
    loaded = case.suite.make_retriever()
    loaded.load(folder)
    assert before == json.dumps(retriever.fingerprint(), sort_keys=True), "fingerprint() must not change by search()"
    assert before == json.dumps(loaded.fingerprint(), sort_keys=True), "fingerprint() must not change by load()"


def has_the_same_fingerprint_in_another_process(case: RetrieverCase) -> None:
    here, there = case.new().fingerprint(), case.elsewhere(_fingerprint)
    assert json.loads(json.dumps(here)) == there, (
        f"fingerprint() is {here} here and {there} in another process: no time, process id, hash() of a string or "
        "order of a set may be in it, or no index is ever used again"
    )


def _fingerprint(case: RetrieverCase) -> dict[str, object]:
    """For another process."""
    return case.new().fingerprint()


def has_no_search_option_in_its_fingerprint(case: RetrieverCase) -> None:
    other = _searching_differently(case)
    assert other.fingerprint() == case.suite.make_retriever().fingerprint(), (
        "search options do not change the index: leave them out of fingerprint(), or every change rebuilds it"
    )


def opens_its_index_with_other_search_options(case: RetrieverCase) -> None:
    """Retroflow uses the stored index again when only a search option changed."""
    other = CheckedRetriever(_searching_differently(case), owner=OWNER)
    folder = case.scratch() / "index"
    case.built.save(folder)
    other.load(folder)
    ids, scores = other.search(case.queries, 3)
    valid = ids >= 0
    assert valid[:, 0].all(), "opened with other search options, the index finds nothing for some queries"
    if case.metric != "own":
        expected = true_scores(case.metric, case.queries[np.nonzero(valid)[0]], case.keys[ids[valid]])
        worst = float(np.abs(scores[valid] - expected).max())
        assert worst <= case.suite.score_tolerance, (
            f"opened with other search options, a score is {worst:.2g} away from the true one"
        )
    if case.built.capabilities.deterministic:
        built = CheckedRetriever(_searching_differently(case), owner=OWNER)
        built.build(case.keys)
        expected_answer = built.search(case.queries, 3)
        check_equal(Neighbours(ids, scores), expected_answer, "built with these search options, and opened with them")


def _searching_differently(case: RetrieverCase) -> Retriever:
    other: Retriever | None = case.suite.make_retriever_searching_differently()
    if other is None:
        raise unittest.SkipTest("make_retriever_searching_differently() returns None: no search option changes")
    return other
