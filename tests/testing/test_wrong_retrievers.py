"""RetrieverContract fails every retriever that is wrong, by the rule that says why, and passes those that are right.

Each wrong one is the correct one with one fault. It is shown only to the rule that must fail; what ends or stops the
process is shown to it in a process of its own, as the suite does, and the others here.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from retroflow.protocols import Retriever
from retroflow.testing import RetrieverContract
from retroflow.testing.retriever_case import RetrieverCase
from retroflow.testing.retriever_rules import RULES, instances
from retroflow.testing.rule_process import RuleProcess, other_hash_seed, outcome_of
from retroflow.testing.rule_runner import RuleRunner
from tests.testing import wrong_retrievers as wrong
from tests.testing.wrong_retrievers import Search

WRONG = [
    # what it declares
    (wrong.WithProcessId, "has_the_same_fingerprint_in_another_process"),
    (wrong.WithHash, "has_the_same_fingerprint_in_another_process"),
    (wrong.WithTime, "has_a_fingerprint_in_json_that_building_does_not_change"),
    (wrong.WithTime, "has_the_same_fingerprint_in_another_process"),
    (wrong.ChangedByBuilding, "has_a_fingerprint_in_json_that_building_does_not_change"),
    (wrong.WithSearchOptions, "has_no_search_option_in_its_fingerprint"),
    (wrong.CapabilitiesByBuild, "implements_the_protocol_and_declares_its_capabilities"),
    (wrong.Cosine, "implements_the_protocol_and_declares_its_capabilities"),
    (wrong.WithoutAnnotation, "has_options_that_a_recipe_can_read"),
    (wrong.ComputedDefault, "has_options_that_a_recipe_can_read"),
    (wrong.LambdaDefault, "has_options_that_a_recipe_can_read"),
    (wrong.ComputedInItsBlock, "has_options_that_a_recipe_can_read"),
    (wrong.AnyKeyword, "takes_its_options_by_keyword"),
    (wrong.Positional, "takes_its_options_by_keyword"),
    # what it answers
    (wrong.NotExact, "finds_the_nearest_of_clustered_vectors"),
    (wrong.TopOneOnly, "finds_the_nearest_of_clustered_vectors"),
    (wrong.At11, "finds_as_many_as_asked_for"),
    (wrong.At20, "finds_as_many_as_asked_for"),
    (wrong.At50, "finds_as_many_as_asked_for"),
    (wrong.At100, "finds_as_many_as_asked_for"),
    (wrong.DotProductUnderL2, "finds_the_nearest_where_lengths_differ"),
    (wrong.CosineAsInnerProduct, "finds_the_nearest_where_lengths_differ"),
    (wrong.DistancesNotSquared, "scores_are_what_the_metric_says"),
    (wrong.ExitsForZeroQuery, "a_zero_query_has_an_answer"),
    (wrong.NothingForZeroQuery, "a_zero_query_has_an_answer"),
    (wrong.DuplicatesDropped, "equal_vectors_are_different_neighbours"),
    (wrong.FirstNeverFound, "pads_with_minus_one_where_few_exist"),
    (wrong.AtLeastTen, "pads_with_minus_one_where_few_exist"),
    (wrong.NoFewerThanTwoDifferent, "equal_vectors_are_different_neighbours"),
    # how much, how wide
    (wrong.RaisesAboveK3000, "finds_the_first_and_the_last_of_70000_vectors"),
    (wrong.RaisesAbove1024, "answers_5000_queries_as_50_at_a_time"),
    (wrong.NothingAbove1024, "answers_5000_queries_as_50_at_a_time"),
    (wrong.ForgetsAfter4096, "finds_the_first_and_the_last_of_70000_vectors"),
    (wrong.ForgetsAfter16384, "finds_the_first_and_the_last_of_70000_vectors"),
    (wrong.LastBlockForgotten, "finds_the_first_and_the_last_of_70000_vectors"),
    (wrong.IdsOf16Bits, "finds_the_first_and_the_last_of_70000_vectors"),
    (wrong.ReadsAllAtOnce, "finds_the_first_and_the_last_of_70000_vectors"),
    (wrong.LastForgotten, "pads_with_minus_one_where_few_exist"),
    (wrong.WidthOf8Only, "takes_vectors_of_any_width"),
    (wrong.WidthAtMost256, "takes_vectors_of_any_width"),
    (wrong.WidthCutTo8, "takes_vectors_of_any_width"),
    # what it is given
    (wrong.ChangesQueries, "leaves_vectors_and_queries_as_they_were"),
    (wrong.WantsWritableQueries, "takes_any_float_dtype_and_memory_layout"),
    # state
    (wrong.QueryOnSelf, "threads_can_search_at_once"),
    (wrong.QueryOnSelfBriefly, "threads_can_search_at_once"),
    (wrong.CachedByFirstQuery, "an_answer_depends_on_every_query_and_on_k"),
    (wrong.CachedByLastQuery, "an_answer_depends_on_every_query_and_on_k"),
    (wrong.CachedBySum, "an_answer_depends_on_every_query_and_on_k"),
    (wrong.LoadedWins, "loading_replaces_what_was_built"),
    (wrong.CacheOutlivesBuild, "building_again_replaces_the_index"),
    (wrong.CacheOutlivesBuild, "loading_replaces_what_was_built"),
    (wrong.LoadKeepsTheOld, "loading_replaces_what_was_built"),
    (wrong.BuildAppends, "building_again_replaces_the_index"),
    (wrong.StateInTheClass, "two_instances_share_nothing"),
    (wrong.SharedArrays, "an_answer_stays_as_it_is"),
    (wrong.RandomSearch, "the_same_search_has_the_same_answer"),
    (wrong.RandomBuild, "two_builds_are_equal_if_declared_deterministic"),
    (wrong.RandomByHash, "a_build_in_another_process_is_equal_if_declared_deterministic"),
    (wrong.Prints, "leaves_the_process_as_it_was"),
    (wrong.PrintsNatively, "leaves_the_process_as_it_was"),
    (wrong.SeedsNumpy, "leaves_the_process_as_it_was"),
    (wrong.SeedsRandom, "leaves_the_process_as_it_was"),
    (wrong.SeedsTorch, "leaves_the_process_as_it_was"),
    (wrong.ChangesSettings, "leaves_the_process_as_it_was"),
    (wrong.ChangesFolder, "leaves_the_process_as_it_was"),
    (wrong.WrongAfterFork, "a_forked_child_searches_or_is_told_not_to"),
    (wrong.SizedByTheFirstBuild, "building_again_replaces_the_index"),
    # what it stores
    (wrong.CachesOnLoad, "building_loading_and_searching_write_nothing"),
    (wrong.BuildsInTheCurrentFolder, "building_loading_and_searching_write_nothing"),
    (wrong.OneLost, "finds_the_same_after_loading"),
    (wrong.TwoSwapped, "finds_the_same_after_loading"),
    (wrong.HalfLost, "finds_the_same_after_loading"),
    (wrong.ElsewhereByPath, "writes_into_its_folder_alone"),
    (wrong.ElsewhereByPath, "opens_in_another_process_and_folder"),
    (wrong.IntoItsHome, "writes_into_its_folder_alone"),
    (wrong.IntoTheParent, "writes_into_its_folder_alone"),
    (wrong.ByLink, "writes_into_its_folder_alone"),
    (wrong.ByLinkInside, "writes_into_its_folder_alone"),
    (wrong.IntoTheCurrentFolder, "writes_into_its_folder_alone"),
    (wrong.OwnPathStored, "writes_no_absolute_path"),
    (wrong.InTheProcess, "opens_in_another_process_and_folder"),
    (wrong.Pickles, "writes_and_reads_no_pickle"),
    (wrong.PicklesOldProtocol, "writes_and_reads_no_pickle"),
    (wrong.PicklesNoClass, "writes_and_reads_no_pickle"),
    (wrong.PicklesCompressed, "writes_and_reads_no_pickle"),
    (wrong.ArrayOfObjects, "writes_and_reads_no_pickle"),
    (wrong.SaveBreaksSearch, "searches_after_saving_as_before"),
]
RIGHT = [wrong.Right, wrong.ByInnerProduct, wrong.TiesDescending, wrong.OptionsInTheFingerprint]
FATAL = [
    (wrong.CrashesInBuild, "building_again_replaces_the_index", "SIGSEGV"),
    (wrong.CrashesInSearch, "the_same_search_has_the_same_answer", "SIGSEGV"),
    (wrong.CrashesInLoad, "finds_the_same_after_loading", "SIGSEGV"),
    (wrong.LeavesInBuild, "building_again_replaces_the_index", "exit status 0"),
    (wrong.LeavesInSearch, "the_same_search_has_the_same_answer", "exit status 0"),
]
EXITS = [
    (wrong.ExitsInBuild, "building_again_replaces_the_index"),
    (wrong.ExitsInSearch, "scores_are_what_the_metric_says"),
]


class Suite(RetrieverContract):
    """A suite of the retriever class that its subclass names; made for each class, and found by name elsewhere."""

    __test__ = False
    of: type = wrong.Right

    def make_retriever(self) -> Retriever:
        return self.of()

    def make_retriever_searching_differently(self) -> Retriever:
        return self.of(search=Search(effort=6))


def suite_of(retriever: type) -> None:
    """Define a suite in this module, where the other process finds it."""
    name = f"Suite{retriever.__name__}"
    globals()[name] = type(name, (Suite,), {"of": retriever, "__module__": __name__})


for _name, _class in list(vars(wrong).items()):
    if isinstance(_class, type) and issubclass(_class, wrong.Right):
        suite_of(_class)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[RuleProcess]:
    process = RuleProcess(other_hash_seed())
    yield process
    process.close()


def case_of(retriever: type, folder: Path, elsewhere: RuleProcess) -> RetrieverCase:
    return RetrieverCase(globals()[f"Suite{retriever.__name__}"](), folder, elsewhere)


@pytest.mark.parametrize(("retriever", "rule"), WRONG, ids=lambda value: getattr(value, "__name__", value))
def test_a_wrong_retriever_fails_its_rule(
    retriever: type, rule: str, tmp_path: Path, elsewhere: RuleProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome, message = outcome_of(lambda: RULES[rule](case_of(retriever, tmp_path, elsewhere)))
    assert outcome == "failed", f"{retriever.__name__} passes {rule}: {message}"


@pytest.mark.parametrize("retriever", RIGHT, ids=lambda value: value.__name__)
def test_a_right_retriever_passes_all_rules(retriever: type, tmp_path: Path, elsewhere: RuleProcess) -> None:
    case = case_of(retriever, tmp_path, elsewhere)
    outcomes = {name: outcome_of(lambda rule=rule: rule(case)) for name, rule in RULES.items()}
    assert not {name: said for name, (outcome, said) in outcomes.items() if outcome != "ok"}


@pytest.mark.parametrize(("retriever", "rule", "end"), FATAL, ids=lambda value: getattr(value, "__name__", value))
def test_what_ends_the_process_fails_the_rule_by_name(retriever: type, rule: str, end: str) -> None:
    runner = RuleRunner(globals()[f"Suite{retriever.__name__}"])
    try:
        with pytest.raises(pytest.fail.Exception, match=f"{rule}: ended the process .*{end}"):
            runner.run(RULES[rule])
        runner.run(RULES["takes_its_options_by_keyword"])  # in a new process
    finally:
        runner.close()


@pytest.mark.parametrize(("retriever", "rule"), EXITS, ids=lambda value: getattr(value, "__name__", value))
def test_an_exit_is_a_failure(retriever: type, rule: str) -> None:
    runner = RuleRunner(globals()[f"Suite{retriever.__name__}"])
    try:
        with pytest.raises(pytest.fail.Exception, match=f"{rule}: .*SystemExit: 0"):
            runner.run(RULES[rule])
    finally:
        runner.close()


@pytest.mark.parametrize("retriever", [wrong.HangsInBuild, wrong.HangsInSearch], ids=lambda value: value.__name__)
def test_a_hang_fails_the_rule_by_name_and_says_where(retriever: type, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = globals()[f"Suite{retriever.__name__}"]
    monkeypatch.setattr(suite, "seconds", 1.5, raising=False)
    runner = RuleRunner(suite)
    try:
        with pytest.raises(
            pytest.fail.Exception, match="scores_are_what_the_metric_says: still running after"
        ) as raised:
            runner.run(RULES["scores_are_what_the_metric_says"])
        assert "wrong_retrievers.py" in str(raised.value), "the line where it was"
        with pytest.raises(pytest.fail.Exception, match="still running"):
            runner.run(RULES["a_zero_query_has_an_answer"])
        with pytest.raises(pytest.fail.Exception, match="not run: 2 rules have hung"):
            runner.run(RULES["a_zero_query_has_an_answer"])
    finally:
        runner.close()


def test_a_forked_child_that_hangs_ends(
    tmp_path: Path, elsewhere: RuleProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "FORK_SECONDS", 1)
    rule = RULES["a_forked_child_searches_or_is_told_not_to"]
    outcome, message = outcome_of(lambda: rule(case_of(wrong.HangsAfterFork, tmp_path, elsewhere)))
    assert outcome == "failed" and "still searching after 1 s" in message
