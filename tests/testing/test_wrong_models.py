"""ModelContract fails every model that is wrong in one way, by the rule that says why."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from retroflow.model.cache import RetroCache
from retroflow.model.config import RetroConfig
from retroflow.model.retro import Retro
from retroflow.testing import ModelContract
from retroflow.testing.model_case import ModelCase
from retroflow.testing.rule_process import outcome_of
from tests.model.random_models import SMALL

RULES = ModelContract.rules()
OPTIONS = {field.name: getattr(SMALL, field.name) for field in dataclasses.fields(SMALL)}


class SeesTheNext(Retro):
    def forward(self, tokens, *arguments, **options):
        logits = super().forward(tokens, *arguments, **options)
        return logits + 0.1 * logits.roll(-1, dims=1)


class DependsOnLength(Retro):
    def forward(self, tokens, *arguments, **options):
        return super().forward(tokens, *arguments, **options) * (1 + 1 / tokens.shape[1])


class ReadsTooEarly(Retro):
    def forward(self, tokens, retrieved=None, *arguments, **options):
        return super().forward(tokens, None if retrieved is None else retrieved.roll(-1, dims=1), *arguments, **options)


class ReadsNothing(Retro):
    def forward(self, tokens, retrieved=None, retrieved_mask=None, **options):
        return super().forward(tokens, **options)


class ReadsTheFirstNeighbour(Retro):
    def forward(self, tokens, retrieved=None, *arguments, **options):
        return super().forward(tokens, None if retrieved is None else retrieved[:, :, :1], *arguments, **options)


class ReadsWhatIsMasked(Retro):
    def forward(self, tokens, retrieved=None, retrieved_mask=None, **options):
        return super().forward(tokens, None if retrieved is None else retrieved.clamp(min=0), **options)


class KnowsThatItRetrieves(Retro):
    def forward(self, tokens, retrieved=None, *arguments, **options):
        return super().forward(tokens, retrieved, *arguments, **options) + (0.0 if retrieved is None else 0.1)


class MixesRows(Retro):
    def forward(self, *arguments, **options):
        logits = super().forward(*arguments, **options)
        return logits + 0.1 * logits.mean(0)


class SeesPadding(Retro):
    def forward(self, *arguments, padding=None, **options):
        return super().forward(*arguments, **options)


class LosesThePadding(Retro):
    def new_cache(self, *, padding=None, **options):
        return super().new_cache(**options)


class TakesAnything(Retro):
    def forward(self, tokens, *arguments, **options):
        return super().forward(tokens.clamp(max=self.config.vocabulary_size - 1), *arguments, **options)


class LeavesOneOut(Retro):
    def forward(self, *arguments, **options):
        return super().forward(*arguments, **options)[:, 1:]


class StatesPositions(Retro):
    max_length = 8


class AveragesTheLoss(Retro):
    def loss(self, tokens, *arguments):
        return super().loss(tokens, *arguments) / tokens.shape[1]


class CountsIgnored(Retro):
    def loss(self, tokens, targets, *arguments):
        return super().loss(tokens, targets.clamp(min=0), *arguments)


class ForgetsNeighbours(Retro):
    def extend(self, tokens, cache, retrieved=None, retrieved_mask=None):
        return super().extend(tokens, cache)


class KeepsAllRows(Retro):
    class Cache(RetroCache):
        def select(self, rows):
            """Keep them all."""

    def new_cache(self, **options):
        cache = super().new_cache(**options)
        cache.__class__ = self.Cache
        return cache


class KeepsThePadding(Retro):
    class Cache(RetroCache):
        def join(self, other, length):
            super().join(other, length)
            self._set_padding(None)

    def new_cache(self, **options):
        cache = super().new_cache(**options)
        cache.__class__ = self.Cache
        return cache


class StatesNoParameters(Retro):
    def retrieval_parameters(self):
        return set()


class ForgetsAtSaving(Retro):
    def save_pretrained(self, folder):
        kept = self.norm.weight.detach().clone()
        self.norm.weight.data.zero_()
        super().save_pretrained(folder)
        self.norm.weight.data.copy_(kept)


class SavesBeside(Retro):
    def save_pretrained(self, folder):
        super().save_pretrained(folder)
        (Path(folder).parent / "notes.txt").write_text("saved")


class Draws(Retro):
    def loss(self, *arguments):
        torch.rand(1)
        return super().loss(*arguments)


class Prints(Retro):
    def extend(self, *arguments):
        print("more")
        return super().extend(*arguments)


class DrawsElsewhere(Retro):
    def __init__(self, config):
        super().__init__(config)
        self.norm.weight.data += random.random()


class OnTheCpuAlways(Retro):
    def __init__(self, config):
        super().__init__(config)
        self.further = nn.Parameter(torch.zeros(1, device="cpu"))


class ShardsABlockTwice(Retro):
    @property
    def blocks_to_shard(self):
        return [*self.blocks, self]


class Drifting(nn.Module):
    """Another value at every call."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.calls = norm, 0

    def forward(self, x):
        self.calls += 1
        x = self.norm(x) * self.calls
        return x * x


class RecomputesAnotherValue(Retro):
    def __init__(self, config):
        super().__init__(config)
        self.last = self.norm
        self.norm = Drifting(self.last)

    @property
    def blocks_to_recompute(self):
        return [self.norm]


class WithoutMember(RetroConfig):
    @property
    def located_in(self):
        raise AttributeError("located_in")


class Positional(RetroConfig):
    def __init__(self, width: int = 16):
        super().__init__(**OPTIONS | {"width": width})


class ComputedDefault(RetroConfig):
    def __init__(self, *, width: int = len("a model of width 16")):
        super().__init__(**OPTIONS)


def config_of(model: type) -> Any:
    """The options of SMALL, building this model; or a configuration that is wrong itself."""
    if issubclass(model, RetroConfig):
        return model(**OPTIONS) if model is WithoutMember else model()
    return type("Config", (RetroConfig,), {"build": lambda self: model(self)})(**OPTIONS)


WRONG = [
    (WithoutMember, "implements_the_protocols"),
    (Positional, "takes_its_options_by_keyword"),
    (ComputedDefault, "has_options_that_a_recipe_can_read"),
    (DrawsElsewhere, "the_same_seed_builds_the_same_weights"),
    (OnTheCpuAlways, "builds_on_the_meta_device"),
    (ShardsABlockTwice, "names_blocks_of_its_own"),
    (LeavesOneOut, "gives_logits_for_every_token"),
    (AveragesTheLoss, "the_loss_is_the_nats_of_the_targets"),
    (CountsIgnored, "the_loss_is_the_nats_of_the_targets"),
    (TakesAnything, "refuses_what_does_not_fit"),
    (StatesPositions, "refuses_more_tokens_than_it_has_positions"),
    (SeesTheNext, "no_token_sees_a_later_one"),
    (DependsOnLength, "a_prefix_has_the_same_logits"),
    (MixesRows, "a_row_is_independent_of_the_others"),
    (SeesPadding, "padding_at_the_left_changes_nothing"),
    (ReadsTooEarly, "neighbours_reach_only_what_follows_their_window"),
    (ReadsNothing, "neighbours_reach_only_what_follows_their_window"),
    (ReadsTheFirstNeighbour, "the_order_of_neighbours_changes_nothing"),
    (ReadsWhatIsMasked, "what_the_mask_hides_changes_nothing"),
    (ReadsWhatIsMasked, "a_masked_neighbour_is_an_absent_one"),
    (KnowsThatItRetrieves, "no_neighbours_at_all_is_retrieval_off"),
    (ForgetsNeighbours, "cached_logits_are_those_of_forward"),
    (LosesThePadding, "cached_logits_of_padded_rows_are_those_of_forward"),
    (KeepsAllRows, "rows_of_a_cache_can_be_chosen"),
    (KeepsThePadding, "caches_can_be_joined"),
    (StatesNoParameters, "a_loss_without_neighbours_reaches_all_but_retrieval_parameters"),
    (RecomputesAnotherValue, "recomputing_blocks_changes_no_gradient"),
    (ForgetsAtSaving, "a_saved_model_is_the_same"),
    (SavesBeside, "a_saved_model_is_the_same"),
    (Draws, "leaves_the_process_as_it_was"),
    (Prints, "leaves_the_process_as_it_was"),
]


@pytest.mark.parametrize(("model", "rule"), WRONG, ids=lambda value: getattr(value, "__name__", value))
def test_a_wrong_model_fails_its_rule(model: type, rule: str, tmp_path: Path) -> None:
    class Suite(ModelContract):
        def make_config(self) -> Any:
            return config_of(model)

    outcome, message = outcome_of(lambda: RULES[rule](ModelCase(Suite(), tmp_path)))
    assert outcome == "failed", f"{model.__name__} passes {rule}: {message}"


def test_every_rule_is_seen_failing() -> None:
    assert {rule for _, rule in WRONG} == set(RULES)


def test_a_suite_without_make_config_says_so() -> None:
    with pytest.raises(NotImplementedError, match="override make_config"):
        ModelContract().make_config()
