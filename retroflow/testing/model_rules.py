"""The rules of ModelContract: each public function is one, and raises if a model breaks it.

Shapes: b sequences, n tokens, m tokens of a chunk, s tokens between two lookups, W windows, k neighbours, r = 2m, v
vocabulary.
"""

import unittest
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from retroflow.errors import InvalidShapeError
from retroflow.model.loss import IGNORED
from retroflow.model.pretrained import load_weights, make_config, read_config
from retroflow.protocols import ModelConfig, RetrievalModel, missing_members
from retroflow.testing.case import doing, refused
from retroflow.testing.effects import changed_since, standard_output, state_of_process, unusual_settings
from retroflow.testing.model_case import (
    NUM_ROWS,
    ModelCase,
    cached_logits,
    changed_positions,
    check_same,
    gradients_of,
    logits_of,
)
from retroflow.testing.readable_options import check_keyword_only, check_readable
from retroflow.testing.stored_files import listing, pickles_in

# What it says of itself.


def implements_the_protocols(case: ModelCase) -> None:
    lacking = missing_members(case.config, ModelConfig)
    assert not lacking, f"the configuration lacks {lacking}; inherit from retroflow.ModelConfig"
    assert isinstance(case.model, nn.Module), f"build() returns {type(case.model).__name__}, no torch.nn.Module"
    lacking = missing_members(case.model, RetrievalModel)
    assert not lacking, f"the model lacks {lacking}; inherit from torch.nn.Module and retroflow.RetrievalModel"


def takes_its_options_by_keyword(case: ModelCase) -> None:
    check_keyword_only(type(case.config))


def has_options_that_a_recipe_can_read(case: ModelCase) -> None:
    check_readable(type(case.config))


def the_same_seed_builds_the_same_weights(case: ModelCase) -> None:
    first, second = case.build().state_dict(), case.build().state_dict()
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    assert not differing, f"built twice with one seed, {differing[:3]} differ; draw from torch's global generator alone"


def builds_on_the_meta_device(case: ModelCase) -> None:
    """A model is counted there before there is memory for it."""
    config = case.config
    with torch.device("meta"):
        model: Any = config.build()
    real = {name: parameter.device.type for name, parameter in model.named_parameters() if not parameter.is_meta}
    assert not real, f"parameters are not on the meta device: {list(real)[:3]}"
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in case.model.named_parameters()}, (
        "parameters have other names or shapes on the meta device"
    )


def names_blocks_of_its_own(case: ModelCase) -> None:
    modules = set(case.model.modules())
    for name in ("blocks_to_shard", "blocks_to_recompute", "blocks_to_compile"):
        blocks = getattr(case.model, name)
        assert set(blocks) <= modules, f"{name} holds modules that are not the model's"
        assert len(set(blocks)) == len(blocks), f"{name} names a block twice"
    inside = [id(parameter) for block in case.model.blocks_to_shard for parameter in block.parameters()]
    assert len(set(inside)) == len(inside), "blocks_to_shard: a parameter is in two of them; leave it in none"


# What it computes.


def gives_logits_for_every_token(case: ModelCase) -> None:
    m = case.chunk
    for length in sorted({1, max(1, m - 1), m, m + 1, 3 * m}):
        with doing(f"{length} tokens"):
            tokens = case.tokens(length)
            for retrieved in (None, case.retrieved(tokens)):
                logits = logits_of(case.model, tokens, retrieved)
                wanted = (NUM_ROWS, length, case.model.config.vocabulary_size)
                assert logits.is_floating_point() and logits.shape == wanted, (
                    f"forward gives {logits.dtype} {list(logits.shape)}; float {list(wanted)} is needed"
                )
                assert logits.isfinite().all(), "logits are not finite"


def the_loss_is_the_nats_of_the_targets(case: ModelCase) -> None:
    tokens, targets = case.tokens(), case.tokens(seed=2)
    targets[:, ::3] = IGNORED
    padded = torch.tensor([0, case.chunk, 1][:NUM_ROWS])
    targets[torch.arange(tokens.shape[1]) < padded[:, None]] = IGNORED
    for retrieved, padding in ((None, None), (case.retrieved(tokens), None), (case.retrieved(tokens), padded)):
        found = case.model.loss(tokens, targets, retrieved, None, padding).detach()
        logits = logits_of(case.model, tokens, retrieved, padding=padding)
        nats = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        assert found.shape == (NUM_ROWS,), f"loss() has shape {list(found.shape)}, and not [{NUM_ROWS}]"
        check_same(found, nats.view(targets.shape).sum(1), "loss(), and the cross entropy of forward's logits")


def refuses_what_does_not_fit(case: ModelCase) -> None:
    tokens = case.tokens()
    retrieved = case.retrieved(tokens)
    wrong: dict[str, tuple[Any, Any]] = {
        "tokens of floats": (tokens.float(), None),
        "tokens of one dimension": (tokens[0], None),
        "no token": (tokens[:, :0], None),
        "a token outside the vocabulary": (torch.full_like(tokens, case.model.config.vocabulary_size), None),
        "neighbours of too few windows": (tokens, retrieved[:, :1]),
        "neighbours that are too short": (tokens, retrieved[..., :-1]),
    }
    for name, (some_tokens, some_retrieved) in wrong.items():
        with doing(name), refused(InvalidShapeError):
            case.model(some_tokens, some_retrieved)


def refuses_more_tokens_than_it_has_positions(case: ModelCase) -> None:
    most = case.model.max_length
    if most is None:
        raise unittest.SkipTest("max_length is None: it reads any number of tokens")
    with refused(InvalidShapeError):
        case.model(case.tokens(most + 1))


def no_token_sees_a_later_one(case: ModelCase) -> None:
    tokens = case.tokens()
    for retrieved in (None, case.retrieved(tokens)):
        before = logits_of(case.model, tokens, retrieved)
        for place in range(1, tokens.shape[1]):
            changed = tokens.clone()
            changed[:, place] = case.other(tokens[:, place])
            found = changed_positions(before, logits_of(case.model, changed, retrieved))
            assert not found or found[0] >= place, f"another token {place} changes the logits at position {found[0]}"
            assert place in found, f"another token {place} changes nothing at its own position"


def a_prefix_has_the_same_logits(case: ModelCase) -> None:
    tokens = case.tokens()
    retrieved = case.retrieved(tokens)
    whole = logits_of(case.model, tokens, retrieved)
    for length in range(1, tokens.shape[1]):
        prefix = logits_of(case.model, tokens[:, :length], retrieved[:, : length // case.chunk])
        check_same(prefix, whole[:, :length], f"the first {length} tokens alone, and before others")


def a_row_is_independent_of_the_others(case: ModelCase) -> None:
    tokens = case.tokens()
    for retrieved in (None, case.retrieved(tokens)):
        together = logits_of(case.model, tokens, retrieved)
        for row in range(NUM_ROWS):
            own = slice(row, row + 1)
            alone = logits_of(case.model, tokens[own], None if retrieved is None else retrieved[own])
            check_same(alone, together[own], "a row alone, and among others")


def padding_at_the_left_changes_nothing(case: ModelCase) -> None:
    tokens, m = case.tokens(), case.chunk
    padded = torch.cat((case.tokens(m, seed=3), tokens), dim=1)
    padding = torch.full((NUM_ROWS,), m)
    found = logits_of(case.model, padded, padding=padding)[:, m:]
    check_same(found, logits_of(case.model, tokens), "rows with and without padding")
    retrieved = case.retrieved(padded)
    check_same(
        logits_of(case.model, padded, retrieved, padding=padding)[:, m:],
        logits_of(case.model, tokens, retrieved[:, 1:]),
        "rows with and without a chunk of padding, with neighbours",
    )


# What it reads.


def neighbours_reach_only_what_follows_their_window(case: ModelCase) -> None:
    _skip_unless_it_retrieves(case)
    tokens = case.tokens()
    for step in case.steps:
        retrieved = case.retrieved(tokens, step)
        before = logits_of(case.model, tokens, retrieved, retrieval_step=step)
        for window in range(retrieved.shape[1]):
            changed = retrieved.clone()
            changed[:, window] = case.other(retrieved[:, window])
            found = changed_positions(before, logits_of(case.model, tokens, changed, retrieval_step=step))
            first = case.chunk + window * step - 1
            what = f"other neighbours of window {window}, which ends with position {first} (retrieval_step {step}),"
            assert found, f"{what} change nothing"
            assert found[0] >= first, f"{what} change the logits at position {found[0]}"


def the_order_of_neighbours_changes_nothing(case: ModelCase) -> None:
    tokens = case.tokens()
    retrieved = case.retrieved(tokens, neighbours=3)
    turned = logits_of(case.model, tokens, retrieved[:, :, [2, 0, 1]])
    check_same(turned, logits_of(case.model, tokens, retrieved), "neighbours in another order")


def what_the_mask_hides_changes_nothing(case: ModelCase) -> None:
    tokens = case.tokens()
    retrieved = case.retrieved(tokens)
    mask = torch.ones_like(retrieved, dtype=torch.bool)
    mask[..., -case.chunk // 2 :] = False
    expected = logits_of(case.model, tokens, retrieved, mask)
    for name, hidden in (("other tokens", case.other(retrieved)), ("-1", torch.full_like(retrieved, -1))):
        found = logits_of(case.model, tokens, torch.where(mask, retrieved, hidden), mask)
        check_same(found, expected, f"{name} masked")


def a_masked_neighbour_is_an_absent_one(case: ModelCase) -> None:
    tokens = case.tokens()
    retrieved = case.retrieved(tokens, neighbours=3)
    mask = torch.tensor([True, True, False]).expand(retrieved.shape[:3])
    expected = logits_of(case.model, tokens, retrieved[:, :, :2])
    check_same(logits_of(case.model, tokens, retrieved, mask), expected, "two neighbours and one masked, and two alone")
    full = mask[..., None].expand(retrieved.shape)
    check_same(logits_of(case.model, tokens, retrieved, full), expected, "the same mask, given for every token")


def no_neighbours_at_all_is_retrieval_off(case: ModelCase) -> None:
    tokens, m = case.tokens(), case.chunk
    retrieved = case.retrieved(tokens)
    off = logits_of(case.model, tokens)
    none = torch.zeros(retrieved.shape[:3], dtype=torch.bool)
    check_same(logits_of(case.model, tokens, retrieved, none), off, "all neighbours masked, and retrieval off")
    first = none.clone()
    first[:, 1:] = True
    found = logits_of(case.model, tokens, retrieved, first)
    assert found.isfinite().all(), "logits are not finite where only some chunks have neighbours"
    check_same(found[:, : 2 * m - 1], off[:, : 2 * m - 1], "before any chunk with neighbours, and retrieval off")


# How it generates.


def cached_logits_are_those_of_forward(case: ModelCase) -> None:
    tokens, m = case.tokens(), case.chunk
    n = tokens.shape[1]
    for step in case.steps:
        for retrieved in (None, case.retrieved(tokens, step)):
            whole = logits_of(case.model, tokens, retrieved, retrieval_step=step)
            for pieces in ([n], [1] * n, [m - 1 or 1, 1, m + 1, n]):
                neighbours = "without" if retrieved is None else "with"
                found = cached_logits(case, tokens, retrieved, pieces, step=step)
                what = f"extend() by {pieces[:4]} tokens {neighbours} neighbours (retrieval_step {step}), and forward"
                check_same(found, whole, what)


def cached_logits_of_padded_rows_are_those_of_forward(case: ModelCase) -> None:
    tokens, m = case.tokens(), case.chunk
    padding = torch.tensor([0, m, 1][:NUM_ROWS])
    retrieved = case.retrieved(tokens)
    whole = logits_of(case.model, tokens, retrieved, padding=padding)
    found = cached_logits(case, tokens, retrieved, [2 * m, 1, 1, m], padding=padding)
    is_token = torch.arange(tokens.shape[1]) >= padding[:, None]
    check_same(found[is_token], whole[is_token], "padded rows by extend() and by forward")


def rows_of_a_cache_can_be_chosen(case: ModelCase) -> None:
    tokens = case.tokens()
    retrieved, half, rows = case.retrieved(tokens), case.chunk + 1, torch.tensor([2, 0])
    whole = logits_of(case.model, tokens, retrieved)
    cache = case.model.new_cache()
    case.model.extend(tokens[:, :half], cache, retrieved[:, :1])
    cache.select(rows)
    found = case.model.extend(tokens[rows, half:], cache, retrieved[rows, 1:])
    check_same(found, whole[rows, half:], "rows 2 and 0 after cache.select, and forward")


def caches_can_be_joined(case: ModelCase) -> None:
    tokens, m = case.tokens(), case.chunk
    retrieved, whole = case.retrieved(tokens), logits_of(case.model, tokens, case.retrieved(tokens))
    n = tokens.shape[1]
    first, second = case.model.new_cache(), case.model.new_cache()
    case.model.extend(tokens[:1, : 2 * m], first, retrieved[:1, :2])
    case.model.extend(tokens[1:2, :m], second, retrieved[1:2, :1])
    first.join(second, 2 * m)
    assert first.length == 2 * m, f"cache.length is {first.length} after cache.join(other, {2 * m})"
    for place in range(m):
        part = torch.stack((tokens[0, 2 * m + place], tokens[1, m + place]))[:, None]
        ends = place == m - 1 and 3 * m <= n
        read = torch.stack((retrieved[0, 2:3], retrieved[1, 1:2])) if ends else None
        found = case.model.extend(part, first, read)
        check_same(found[0, 0], whole[0, 2 * m + place], "a row after cache.join, and forward")
        check_same(found[1, 0], whole[1, m + place], "a joined row after cache.join, and forward")
    first.select(torch.tensor([1]))
    other = case.model.new_cache()
    case.model.extend(tokens[2:, : 2 * m], other, retrieved[2:, :2])
    first.join(other, 2 * m)  # drops the padding of the row that is left
    found = case.model.extend(torch.stack((tokens[1, 2 * m], tokens[2, 2 * m]))[:, None], first)
    check_same(found[:, 0], whole[1:3, 2 * m], "a row without its padding after cache.join, and forward")


# How it trains.


def a_loss_without_neighbours_reaches_all_but_retrieval_parameters(case: ModelCase) -> None:
    config = case.config
    with torch.device("meta"):
        model: Any = config.build()
        stated = model.retrieval_parameters()
    tokens = case.tokens()
    off, on = gradients_of(case.build(), tokens, None), gradients_of(case.build(), tokens, case.retrieved(tokens))
    unreached = {name for name, gradient in off.items() if gradient is None}
    assert stated or not config.retrieves, (
        "retrieval_parameters() is empty, and training takes such a model for one that does not read"
    )
    assert unreached == stated, (
        "a loss without neighbours reaches other parameters than those not in retrieval_parameters(): "
        f"{sorted(unreached ^ stated)[:3]}; every process of a run waits for these gradients"
    )
    dead = [name for name, gradient in on.items() if gradient is None]
    assert not dead, f"a loss with neighbours does not reach {dead[:3]}"
    finite = all(gradient.isfinite().all() for gradient in on.values() if gradient is not None)
    assert finite, "a gradient is not finite"


def recomputing_blocks_changes_no_gradient(case: ModelCase) -> None:
    tokens, model = case.tokens(), case.build()
    if not model.blocks_to_recompute:
        raise unittest.SkipTest("blocks_to_recompute is empty: activation checkpointing is refused")
    expected = gradients_of(case.build(), tokens, case.retrieved(tokens))
    for block in model.blocks_to_recompute:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    for name, gradient in gradients_of(model, tokens, case.retrieved(tokens)).items():
        wanted = expected[name]
        assert gradient is not None and wanted is not None, f"{name} has no gradient"
        check_same(gradient, wanted, f"the gradient of {name}, with activation checkpointing and without")


# What it stores, and where it runs.


def a_saved_model_is_the_same(case: ModelCase) -> None:
    parent = case.scratch()
    folder = parent / "saved"
    case.model.save_pretrained(folder)
    beside = [path for path in listing(parent, folder) if path != "saved"]
    assert not beside, f"save_pretrained() leaves files beside its folder: {beside[:3]}"
    pickles = pickles_in(folder)
    assert not pickles, f"save_pretrained() writes pickles: {pickles[:3]}; write safetensors"
    _, values = read_config(folder)
    config: Any = make_config(type(case.config), values, where=folder).located_in(folder)
    loaded: Any = load_weights(config.build(), folder)
    tokens = case.tokens()
    retrieved = case.retrieved(tokens)
    assert torch.equal(logits_of(loaded, tokens, retrieved), logits_of(case.model, tokens, retrieved)), (
        "a model that was saved and loaded gives other logits"
    )


def leaves_the_process_as_it_was(case: ModelCase) -> None:
    """In evaluation nothing is drawn; nothing is printed to stdout, which belongs to `--json`."""
    tokens = case.tokens()
    retrieved = case.retrieved(tokens)
    logits_of(case.model, tokens, retrieved)  # what is imported at the first call may be
    with unusual_settings(case.scratch()), standard_output() as written:
        before = state_of_process()
        case.model.loss(tokens, tokens, retrieved).sum().backward()
        cached_logits(case, tokens, retrieved, [tokens.shape[1]])
        said, changed = written(), changed_since(before)
    case.model.zero_grad()
    assert not said, f"it prints to stdout: {said[:200]!r}; log to stderr, or nothing"
    assert not changed, f"it changed {' and '.join(changed)}; put settings back, and draw nothing in evaluation mode"


def _skip_unless_it_retrieves(case: ModelCase) -> None:
    if not case.model.config.retrieves:
        raise unittest.SkipTest("config.retrieves is False: it reads no neighbours")
