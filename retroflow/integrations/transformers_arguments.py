"""The arguments of `forward` and `generate` that our models share with transformers' own, and those they refuse.

Shapes: b batch, n tokens of a call with those before it.
"""

from typing import Any, TypedDict

import torch
from torch import Tensor
from transformers import GenerationConfig

from retroflow.errors import UsageError
from retroflow.generation.retrieved import LiveRetriever
from retroflow.integrations.transformers_cache import RetroflowCache

_TAKEN = ("return_dict", "num_items_in_batch", "output_hidden_states", "position_ids")
_IGNORED = ("tokenizer", "assistant_tokenizer")  # of `generate`, whose loops pass them on
_REFUSED = {
    "inputs_embeds": "reads tokens, because neighbours are found by them; give input_ids",
    "output_attentions": "keeps no attention weights; leave it out (`retroflow inspect` shows what is attended to)",
}


class OtherArguments(TypedDict, total=False):
    """What transformers, its trainer and PEFT also pass to `forward`."""

    return_dict: bool | None
    num_items_in_batch: Tensor | int | None
    position_ids: Tensor | None
    output_hidden_states: bool | int | list[int] | None
    inputs_embeds: None
    output_attentions: None


class GenerationArguments(OtherArguments, total=False):
    """What `generate` hands to `forward`."""

    neighbours: Tensor | None
    neighbours_mask: Tensor | None
    database: LiveRetriever | None
    use_cache: bool | None
    logits_to_keep: int


class LoopArguments(GenerationArguments, total=False):
    """What `generate` hands to a loop of its own, and `retroflow_generate` passes on."""

    streamer: Any
    assistant_model: Any
    assistant_tokenizer: Any
    tokenizer: Any
    synced_gpus: bool
    inputs_tensor: Tensor


def check_others(others: OtherArguments) -> None:
    """Refuse arguments of `forward` that a model of ours has no use for.

    Raises:
        UsageError: one of them is given.
    """
    for name, value in others.items():
        if name not in (*_TAKEN, *_IGNORED) and value is not None and value is not False:
            why = _REFUSED.get(name, "does not support it; leave it out")
            raise UsageError(f"{name}: given to a retroflow model, which {why}.")


def cache_of(given: object, *, is_wanted: bool) -> RetroflowCache | None:
    """Return the cache of a call: the one that is given, a new one if one is wanted, or None.

    Raises:
        UsageError: a cache of transformers' own.
    """
    if given is None:
        return RetroflowCache() if is_wanted else None
    if not isinstance(given, RetroflowCache):
        raise UsageError(
            f"past_key_values: {type(given).__name__} given; a retroflow model has a cache of its own. Leave it out, "
            "or give one that it returned or an empty RetroflowCache (of retroflow.integrations.transformers_cache)."
        )
    return given


def check_positions(
    positions: Tensor | None, mask: Tensor | None, cache: RetroflowCache | None, num_tokens: int
) -> None:
    """Check that positions are those that the model counts itself, from 0 at the first token that is no padding.

    Args:
        positions: int64 [b, t] or [1, t]; None for none.
        mask: [b, n], 0 at padding; None for none.
        cache: of the tokens before.
        num_tokens: t.

    Raises:
        UsageError: others, such as those of several texts packed into one row.
    """
    if positions is None:
        return
    seen = 0 if cache is None else cache.get_seq_length()
    if mask is None:
        mask = torch.ones(1, seen + num_tokens, dtype=torch.int64, device=positions.device)
        if cache is not None and cache.padding is not None:
            mask = (torch.arange(mask.shape[1], device=positions.device) >= cache.padding[:, None]).long()
    counted = (mask.cumsum(dim=1) - 1)[:, -num_tokens:]
    if not bool(((positions == counted) | (mask[:, -num_tokens:] == 0)).all()):
        raise UsageError(
            "position_ids: others given than attention_mask says; a retroflow model counts positions from the first "
            "token that is no padding. Leave it out."
        )


def check_generation(config: GenerationConfig) -> None:
    """Refuse kinds of caches and of drafts that a model of ours cannot have.

    Raises:
        UsageError: one of them is asked for.
    """
    if config.cache_implementation not in (None, "dynamic"):
        raise UsageError(
            f'cache_implementation: "{config.cache_implementation}" given; a retroflow model has a cache of its own. '
            "Leave it out."
        )
    if config.assistant_early_exit is not None:
        raise UsageError(
            f"assistant_early_exit: {config.assistant_early_exit} given; a retroflow model runs all of its layers. "
            "Give an assistant_model or prompt_lookup_num_tokens."
        )


def left_padding(mask: Tensor | None, cache: RetroflowCache | None, num_tokens: int) -> Tensor | None:
    """Count the padding at the left of each row, int64 [b]; None for none.

    Args:
        mask: [b, n], 0 at padding.
        cache: of the tokens before, whose padding stays what it is.
        num_tokens: of this call.

    Raises:
        UsageError: padding elsewhere.
    """
    if mask is None:
        return None
    if mask.ndim != 2:
        raise UsageError(f"attention_mask: {list(mask.shape)} given; [b, n] is needed, 0 at padding.")
    if cache is not None and cache.get_seq_length():
        if not bool(mask[:, -num_tokens:].all()):
            raise UsageError(
                f"attention_mask: it has zeros in the {num_tokens} tokens that follow those of past_key_values; only "
                "the first call can have padding. Continue rows of unequal length one by one."
            )
        return None
    is_token = mask.bool()
    has_begun = is_token.cumsum(dim=1) > 0
    has_ended = (has_begun & ~is_token).cumsum(dim=1) > 0
    if bool((has_ended & is_token).any()) or (cache is not None and bool(has_ended.any())):
        raise UsageError(
            "attention_mask: it has zeros after or between tokens; give padding at the left (of the tokenizer: "
            'padding_side="left"). Only without a cache it can be at the right.'
        )
    padding = (~has_begun).sum(dim=1)
    return padding if bool(padding.any()) else None
