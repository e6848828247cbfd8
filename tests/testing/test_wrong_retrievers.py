"""RetrieverContract fails every retriever that is wrong, by the rule that says why, and passes those that are right.

Each wrong one is the correct one with one fault. It is shown only to the rule that must fail; what ends or stops the
process is shown to it in a process of its own, as the suite does, and the others here.
"""

import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from retroflow.protocols import Retriever
from retroflow.testing import RetrieverContract
from retroflow.testing.contract import RuleRunner, rules_of
from retroflow.testing.retriever_rules import changes, instances, texts
from retroflow.testing.retriever_rules.case import RetrieverCase
from retroflow.testing.rule_process import RuleProcess, other_hash_seed, outcome_of
from tests.testing import (
    right_retriever,
    wrong_answers,
    wrong_changes,
    wrong_edges,
    wrong_settings,
    wrong_state,
    wrong_storage,
    wrong_texts,
)
from tests.testing.right_retriever import Right, Search

RULES = RetrieverContract.rules()
SHARDS = "shards_make_the_index_of_one_build"
WRONG = [
    # what it declares
    (wrong_answers.WithProcessId, "has_the_same_fingerprint_in_another_process"),
    (wrong_answers.WithHash, "has_the_same_fingerprint_in_another_process"),
    (wrong_answers.WithTime, "has_a_fingerprint_in_json_that_building_does_not_change"),
    (wrong_answers.WithTime, "has_the_same_fingerprint_in_another_process"),
    (wrong_answers.ChangedByBuilding, "has_a_fingerprint_in_json_that_building_does_not_change"),
    (wrong_answers.WithSearchOptions, "has_no_search_option_in_its_fingerprint"),
    (wrong_answers.CapabilitiesByBuild, "implements_the_protocol_and_declares_its_capabilities"),
    (wrong_answers.Cosine, "implements_the_protocol_and_declares_its_capabilities"),
    (wrong_answers.WithoutAnnotation, "has_options_that_a_recipe_can_read"),
    (wrong_answers.ComputedDefault, "has_options_that_a_recipe_can_read"),
    (wrong_answers.LambdaDefault, "has_options_that_a_recipe_can_read"),
    (wrong_answers.ComputedInItsBlock, "has_options_that_a_recipe_can_read"),
    (wrong_answers.AnyKeyword, "takes_its_options_by_keyword"),
    (wrong_answers.Positional, "takes_its_options_by_keyword"),
    # what it answers
    (wrong_answers.NotExact, "finds_the_nearest_of_clustered_vectors"),
    (wrong_answers.TopOneOnly, "finds_the_nearest_of_clustered_vectors"),
    (wrong_answers.At11, "finds_as_many_as_asked_for"),
    (wrong_answers.At20, "finds_as_many_as_asked_for"),
    (wrong_answers.At50, "finds_as_many_as_asked_for"),
    (wrong_answers.At100, "finds_as_many_as_asked_for"),
    (wrong_answers.DotProductUnderL2, "finds_the_nearest_where_lengths_differ"),
    (wrong_answers.CosineAsInnerProduct, "finds_the_nearest_where_lengths_differ"),
    (wrong_answers.DistancesNotSquared, "scores_are_what_the_metric_says"),
    (wrong_answers.ExitsForZeroQuery, "a_zero_query_has_an_answer"),
    (wrong_answers.NothingForZeroQuery, "a_zero_query_has_an_answer"),
    (wrong_answers.DuplicatesDropped, "equal_vectors_are_different_neighbours"),
    (wrong_answers.FirstNeverFound, "pads_with_minus_one_where_few_exist"),
    (wrong_answers.AtLeastTen, "pads_with_minus_one_where_few_exist"),
    (wrong_answers.NoFewerThanTwoDifferent, "equal_vectors_are_different_neighbours"),
    # how much, how wide
    (wrong_answers.RaisesAboveK3000, "finds_the_first_and_the_last_of_70000_vectors"),
    (wrong_answers.RaisesAbove1024, "answers_5000_queries_as_50_at_a_time"),
    (wrong_answers.NothingAbove1024, "answers_5000_queries_as_50_at_a_time"),
    (wrong_answers.ForgetsAfter4096, "finds_the_first_and_the_last_of_70000_vectors"),
    (wrong_answers.ForgetsAfter16384, "finds_the_first_and_the_last_of_70000_vectors"),
    (wrong_answers.LastBlockForgotten, "finds_the_first_and_the_last_of_70000_vectors"),
    (wrong_answers.IdsOf16Bits, "finds_the_first_and_the_last_of_70000_vectors"),
    (wrong_answers.ReadsAllAtOnce, "finds_the_first_and_the_last_of_70000_vectors"),
    (wrong_answers.LastForgotten, "pads_with_minus_one_where_few_exist"),
    (wrong_answers.WidthOf8Only, "takes_vectors_of_any_width"),
    (wrong_answers.WidthAtMost256, "takes_vectors_of_any_width"),
    (wrong_answers.WidthCutTo8, "takes_vectors_of_any_width"),
    # at the edges
    (wrong_edges.ExactUpTo64, "finds_as_many_as_asked_for"),
    (wrong_edges.ExactUpTo256, "finds_as_many_as_asked_for"),
    (wrong_edges.InventsScoresOfMany, "finds_as_many_as_asked_for"),
    (wrong_edges.AtMost8Equal, "equal_vectors_are_different_neighbours"),
    (wrong_edges.OneOfFew, "pads_with_minus_one_where_few_exist"),
    (wrong_edges.WithinARadius, "a_query_far_from_all_vectors_has_an_answer"),
    (wrong_edges.PositiveProductsOnly, "pads_with_minus_one_where_few_exist"),
    (wrong_edges.ThreeDecimals, "long_and_short_vectors_are_as_good"),
    (wrong_edges.FixedRange, "long_and_short_vectors_are_as_good"),
    (wrong_edges.FingerprintBySearch, "has_a_fingerprint_in_json_that_building_does_not_change"),
    (wrong_edges.FingerprintByLoad, "has_a_fingerprint_in_json_that_building_does_not_change"),
    (wrong_edges.CapabilitiesByLoad, "implements_the_protocol_and_declares_its_capabilities"),
    (wrong_edges.CapabilitiesBySearch, "implements_the_protocol_and_declares_its_capabilities"),
    # what it is given
    (wrong_state.ChangesQueries, "leaves_vectors_and_queries_as_they_were"),
    (wrong_state.WantsWritableQueries, "takes_any_float_dtype_and_memory_layout"),
    # state
    (wrong_state.QueryOnSelf, "threads_can_search_at_once"),
    (wrong_state.QueryOnSelfBriefly, "threads_can_search_at_once"),
    (wrong_state.CachedByFirstQuery, "an_answer_depends_on_every_query_and_on_k"),
    (wrong_state.CachedByLastQuery, "an_answer_depends_on_every_query_and_on_k"),
    (wrong_state.CachedBySum, "an_answer_depends_on_every_query_and_on_k"),
    (wrong_state.LoadedWins, "loading_replaces_what_was_built"),
    (wrong_state.CacheOutlivesBuild, "building_again_replaces_the_index"),
    (wrong_state.CacheOutlivesBuild, "loading_replaces_what_was_built"),
    (wrong_state.LoadKeepsTheOld, "loading_replaces_what_was_built"),
    (wrong_state.LoadAppends, "loading_replaces_what_was_built"),
    (wrong_state.KeepsAnswers, "an_answer_stays_as_it_is"),
    (wrong_state.ScratchForMany, "threads_can_search_at_once"),
    (wrong_state.ReadsAtTheFirstSearch, "threads_can_search_at_once"),
    (wrong_state.RestoresSearchOptions, "opens_its_index_with_other_search_options"),
    (wrong_state.BuildAppends, "building_again_replaces_the_index"),
    (wrong_state.StateInTheClass, "two_instances_share_nothing"),
    (wrong_state.SharedArrays, "an_answer_stays_as_it_is"),
    (wrong_state.RandomSearch, "the_same_search_has_the_same_answer"),
    (wrong_state.RandomBuild, "two_builds_are_equal_if_declared_deterministic"),
    (wrong_state.RandomByHash, "a_build_in_another_process_is_equal_if_declared_deterministic"),
    (wrong_state.Prints, "leaves_the_process_as_it_was"),
    (wrong_state.PrintsNatively, "leaves_the_process_as_it_was"),
    (wrong_state.SeedsNumpy, "leaves_the_process_as_it_was"),
    (wrong_state.SeedsRandom, "leaves_the_process_as_it_was"),
    (wrong_state.SeedsTorch, "leaves_the_process_as_it_was"),
    (wrong_answers.ChangesSettings, "leaves_the_process_as_it_was"),
    (wrong_state.ChangesFolder, "leaves_the_process_as_it_was"),
    (wrong_state.WrongAfterFork, "a_forked_child_searches_or_is_told_not_to"),
    (wrong_answers.SizedByTheFirstBuild, "building_again_replaces_the_index"),
    *(
        (setting, "leaves_the_process_as_it_was")
        for setting in vars(wrong_settings).values()
        if isinstance(setting, type) and issubclass(setting, wrong_settings.Sets) and setting is not wrong_settings.Sets
    ),
    # what it stores
    (wrong_answers.CachesOnLoad, "building_loading_and_searching_write_nothing"),
    (wrong_answers.BuildsInTheCurrentFolder, "building_loading_and_searching_write_nothing"),
    (wrong_storage.OneLost, "finds_the_same_after_loading"),
    (wrong_storage.TwoSwapped, "finds_the_same_after_loading"),
    (wrong_storage.HalfLost, "finds_the_same_after_loading"),
    (wrong_storage.ElsewhereByPath, "writes_into_its_folder_alone"),
    (wrong_storage.ElsewhereByPath, "opens_in_another_process_and_folder"),
    (wrong_storage.IntoItsHome, "writes_into_its_folder_alone"),
    (wrong_storage.IntoTheParent, "writes_into_its_folder_alone"),
    (wrong_storage.ByLink, "writes_into_its_folder_alone"),
    (wrong_storage.ByLinkInside, "writes_into_its_folder_alone"),
    (wrong_storage.IntoTheCurrentFolder, "writes_into_its_folder_alone"),
    (wrong_storage.OwnPathStored, "writes_no_absolute_path"),
    (wrong_storage.InTheProcess, "opens_in_another_process_and_folder"),
    (wrong_storage.Pickles, "writes_and_reads_no_pickle"),
    (wrong_storage.PicklesOldProtocol, "writes_and_reads_no_pickle"),
    (wrong_storage.PicklesNoClass, "writes_and_reads_no_pickle"),
    (wrong_storage.PicklesCompressed, "writes_and_reads_no_pickle"),
    (wrong_storage.ArrayOfObjects, "writes_and_reads_no_pickle"),
    (wrong_storage.SaveBreaksSearch, "searches_after_saving_as_before"),
    (wrong_storage.ShardsForgetTheLast, SHARDS),
    (wrong_storage.FillsByWhatTrainingLeftInTheInstance, SHARDS),
    (wrong_storage.ShardsHaveRowsTooFew, SHARDS),
    (wrong_storage.ShardsMergeToOtherFiles, SHARDS),
    # by texts
    (wrong_texts.ReadsAllTextsAtOnce, "finds_the_first_and_the_last_of_70000_texts"),
    (wrong_texts.ReadsTheFirstTextsOnly, "finds_the_first_and_the_last_of_70000_texts"),
    (wrong_texts.NoEmptyText, "takes_any_text"),
    (wrong_texts.NoFewTexts, "pads_with_minus_one_where_few_texts_exist"),
    (wrong_texts.LosesTheBestOfMany, "the_best_are_the_beginning_of_all_if_declared_exact"),
    (wrong_texts.ReadsVectorsItDoesNotDeclare, "the_same_search_has_the_same_answer"),
    # changed
    (wrong_changes.IdsShift, "a_changed_index_answers_as_a_new_one"),
    (wrong_changes.RemovedComeBackAfterLoading, "a_changed_index_answers_as_a_new_one"),
    (wrong_changes.AddedAreLostInSaving, "a_changed_index_answers_as_a_new_one"),
    (wrong_changes.AddReplaces, "a_changed_index_answers_as_a_new_one"),
    (wrong_changes.AddsTheFirstKeyOnly, "a_changed_index_answers_as_a_new_one"),
    (wrong_changes.ChangesStayInTheProcess, "changes_are_found_in_another_process"),
    (wrong_changes.KeepsTheLast, "the_last_key_and_all_of_them_can_be_removed"),
    (wrong_changes.FailsWithoutKeys, "the_last_key_and_all_of_them_can_be_removed"),
    (wrong_changes.ReusesIds, "the_last_key_and_all_of_them_can_be_removed"),
    (wrong_changes.ReusesIdsAfterLoading, "the_last_key_and_all_of_them_can_be_removed"),
    (wrong_changes.KeepsTheBytes, "nothing_of_a_removed_key_is_saved_if_declared"),
]
RIGHT = [
    Right,
    right_retriever.ByInnerProduct,
    right_retriever.TiesDescending,
    right_retriever.OptionsInTheFingerprint,
    wrong_texts.RightOfTexts,
    wrong_texts.RightOfBoth,
    wrong_changes.Changing,
    wrong_storage.InShards,
]
FATAL = [
    (wrong_state.CrashesInBuild, "building_again_replaces_the_index", "SIGSEGV"),
    (wrong_state.CrashesInSearch, "the_same_search_has_the_same_answer", "SIGSEGV"),
    (wrong_state.CrashesInLoad, "finds_the_same_after_loading", "SIGSEGV"),
    (wrong_state.LeavesInBuild, "building_again_replaces_the_index", "exit status 0"),
    (wrong_state.LeavesInSearch, "the_same_search_has_the_same_answer", "exit status 0"),
]
EXITS = [
    (wrong_state.ExitsInBuild, "building_again_replaces_the_index"),
    (wrong_state.ExitsInSearch, "scores_are_what_the_metric_says"),
]


class Suite(RetrieverContract):
    """A suite of the retriever class that its subclass names; made for each class, and found by name elsewhere."""

    __test__ = False
    of: type = Right

    def make_retriever(self) -> Retriever:
        return self.of()

    def make_retriever_searching_differently(self) -> Retriever:
        return self.of(search=Search(effort=6))


def suite_of(retriever: type) -> None:
    """Define a suite in this module, where the other process finds it."""
    name = f"Suite{retriever.__name__}"
    globals()[name] = type(name, (Suite,), {"of": retriever, "__module__": __name__})


for _module in (
    right_retriever,
    wrong_answers,
    wrong_edges,
    wrong_settings,
    wrong_state,
    wrong_storage,
    wrong_texts,
    wrong_changes,
):
    for _class in list(vars(_module).values()):
        if isinstance(_class, type) and issubclass(_class, Right):
            suite_of(_class)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[RuleProcess]:
    process = RuleProcess(other_hash_seed())
    yield process
    process.close()


def case_of(retriever: type, folder: Path, elsewhere: RuleProcess) -> RetrieverCase:
    return RetrieverCase(globals()[f"Suite{retriever.__name__}"](), folder, elsewhere)


@pytest.fixture
def settings_put_back() -> Iterator[None]:
    """What a wrong retriever sets before the rule looks stays set in this process."""
    import torch

    handler, mask, limit = signal.getsignal(signal.SIGTERM), os.umask(0o022), sys.getrecursionlimit()
    path, threads, level, stdout = list(sys.path), torch.get_num_threads(), logging.getLogger().level, sys.stdout
    with warnings.catch_warnings(), np.errstate():
        yield
    signal.signal(signal.SIGTERM, handler)
    os.umask(mask)
    sys.setrecursionlimit(limit)
    gc.enable()
    logging.getLogger().setLevel(level)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)
    sys.path[:], sys.stdout = path, stdout
    os.environ.pop("MY_INDEX_WIDTH", None)


@pytest.mark.usefixtures("settings_put_back")
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
    skipped = {name for name, (outcome, said) in outcomes.items() if outcome == "skipped" and "by which" in said}
    of_changes = {name for name in rules_of(changes) if outcomes[name][0] == "skipped"}
    outcome, said = outcomes.pop(SHARDS)
    assert outcome == ("ok" if retriever is wrong_storage.InShards else "skipped"), said
    assert not {
        name: said for name, (outcome, said) in outcomes.items() if outcome != "ok" and name not in skipped | of_changes
    }
    capabilities = case.new().capabilities
    assert len(of_changes) == (0 if capabilities.remove else 4)
    of_texts, reads_texts = set(rules_of(texts)), capabilities.reads_texts
    assert skipped == of_texts if not reads_texts else "scores_are_what_the_metric_says" in skipped
    assert skipped.isdisjoint(of_texts) or capabilities.reads_vectors


def test_a_retriever_that_only_adds_skips_what_is_about_removing(tmp_path: Path, elsewhere: RuleProcess) -> None:
    case = case_of(wrong_changes.OnlyAdds, tmp_path, elsewhere)
    outcomes = [outcome_of(lambda rule=rule: rule(case))[0] for rule in rules_of(changes).values()]
    assert outcomes == ["ok", "ok", "skipped", "skipped"]


@pytest.mark.parametrize(("retriever", "rule", "end"), FATAL, ids=lambda value: getattr(value, "__name__", value))
def test_what_ends_the_process_fails_the_rule_by_name(retriever: type, rule: str, end: str) -> None:
    runner = RuleRunner(globals()[f"Suite{retriever.__name__}"])
    try:
        with pytest.raises(AssertionError, match=f"{rule}: ended the process .*{end}"):
            runner.run(RULES[rule])
        runner.run(RULES["takes_its_options_by_keyword"])  # in a new process
    finally:
        runner.close()


@pytest.mark.parametrize(("retriever", "rule"), EXITS, ids=lambda value: getattr(value, "__name__", value))
def test_an_exit_is_a_failure(retriever: type, rule: str) -> None:
    runner = RuleRunner(globals()[f"Suite{retriever.__name__}"])
    try:
        with pytest.raises(AssertionError, match=f"{rule}: .*SystemExit: 0"):
            runner.run(RULES[rule])
    finally:
        runner.close()


@pytest.mark.parametrize(
    "retriever", [wrong_state.HangsInBuild, wrong_state.HangsInSearch], ids=lambda value: value.__name__
)
def test_a_hang_fails_the_rule_by_name_and_says_where(retriever: type, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = globals()[f"Suite{retriever.__name__}"]
    runner = RuleRunner(suite)
    try:
        runner.run(RULES["takes_its_options_by_keyword"])  # imports everything, which a busy machine does slowly
        monkeypatch.setattr(suite, "seconds", 1.5, raising=False)
        with pytest.raises(AssertionError, match="scores_are_what_the_metric_says: still running after") as raised:
            runner.run(RULES["scores_are_what_the_metric_says"])
        assert "wrong_state.py" in str(raised.value), "the line where it was"
        with pytest.raises(AssertionError, match="still running"):
            runner.run(RULES["a_zero_query_has_an_answer"])
        with pytest.raises(AssertionError, match="not run: 2 rules have hung"):
            runner.run(RULES["a_zero_query_has_an_answer"])
    finally:
        runner.close()


def test_a_forked_child_that_hangs_ends(
    tmp_path: Path, elsewhere: RuleProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "FORK_SECONDS", 1)
    rule = RULES["a_forked_child_searches_or_is_told_not_to"]
    outcome, message = outcome_of(lambda: rule(case_of(wrong_state.HangsAfterFork, tmp_path, elsewhere)))
    assert outcome == "failed" and "still searching after 1 s" in message
