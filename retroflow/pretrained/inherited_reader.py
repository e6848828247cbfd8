"""Reading by inheritance: a base reads its neighbours with its own attention, and nothing needs to be trained.

Each neighbour runs alone through the base (retroflow/pretrained/neighbour_states.py), and in every reading layer the
positions of a sequence attend, in one softmax, to their own keys and to those of the neighbours that RETRO's
alignment gives them (retroflow/pretrained/joint_attention.py). There are no weights beside the base's, unless some
are trained (retroflow/pretrained/reading_maps.py).

Shapes: b batch, n tokens of a sequence, t new tokens, m tokens of a chunk, s tokens between two lookups, W windows,
k neighbours, r tokens of a neighbour.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from retroflow.model.neighbours import Retrieved
from retroflow.model.windows import num_windows
from retroflow.pretrained.base_cache import (
    Joined,
    Lookup,
    Neighbour,
    RetrofitCache,
    WindowNeighbours,
    known_tokens,
    padded_arguments,
)
from retroflow.pretrained.joint_attention import NAME, JointReading, Watch
from retroflow.pretrained.neighbour_reader import ARGUMENT
from retroflow.pretrained.neighbour_states import NeighbourStates, Text
from retroflow.pretrained.reading_maps import ReadingMaps
from retroflow.pretrained.retrofit_config import RetrofitConfig

STATES_AT_ONCE = 1 << 29
"""Bytes of neighbours' states that a part of a long prompt reads."""

RELATED = 0.2
"""Share of a window's pairs of adjacent tokens from which on a neighbour has the full offset."""

_TOKENS_AT_ONCE = 2048
"""Tokens of such a part, whose mask has a place for each of them and each token before."""


class InheritedReader(nn.Module):
    """Says what the tokens of a call read; it travels through the base, whose attention is made to look for it.

    Args:
        base: made to attend with `joint_attention.attend`.
        layers: that read, from 1.
        options: of the recipe.
        learned_positions: whether the base has learned positions and not rotary ones.
        maps: the trained maps of each of the layers; none where nothing is trained.

    Attributes:
        lookups_read: how many of the newest lookups a position reads.
        watch: as in `JointReading`, for all calls.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        layers: tuple[int, ...],
        options: RetrofitConfig,
        *,
        learned_positions: bool,
        maps: Sequence[ReadingMaps] = (),
    ) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({str(layer): each for layer, each in zip(layers, maps, strict=bool(maps))})
        self._layers = {layer: place for place, layer in enumerate(layers)}
        self._chunk_length = options.chunk_length
        self.watch: Watch | None = None
        self.lookups_read = options.lookups_read
        self._offset, self._unrelated_offset = options.neighbour_offset, options.unrelated_offset
        self.states = NeighbourStates(
            layers,
            retrieved_length=2 * options.chunk_length,
            sink=sink_of(base.config),
            learned_positions=learned_positions,
            most_bytes=0 if options.unfreeze else int(options.neighbour_cache_gib * (1 << 30)),
            store=options.resolved_store,
        )
        base.config._attn_implementation = NAME
        if "llama_4_scaling_beta" in (getattr(base.config, "rope_parameters", None) or {}):
            for module in base.modules():
                if hasattr(module, "layer_idx"):
                    module.register_forward_pre_hook(_scale_as_from_0, with_kwargs=True)

    @property
    def num_layers(self) -> int:
        """Layers that read."""
        return len(self._layers)

    def of_sequences(
        self,
        base: PreTrainedModel,
        tokens: Tensor,
        found: Retrieved | None,
        *,
        step: int,
        padding: Tensor | None = None,
    ) -> JointReading | None:
        """Say what the tokens of whole sequences read.

        Args:
            base: the model's.
            tokens: int64 [b, n].
            found: of all their windows; None for retrieval off.
            step: s.
            padding: int64 [b], tokens at the left of each row that are padding.
        """
        if found is None:
            return None
        ends = [self._chunk_length + window * step for window in range(found.tokens.shape[1])]
        offsets = self._offsets(found, known_tokens(tokens, padding, 0), ends)
        return self._reading(self._windows([], self._lookups(base, found, offsets, ends, padding)), 0)

    def _after(
        self, base: PreTrainedModel, tokens: Tensor, found: Retrieved | None, cache: RetrofitCache
    ) -> JointReading | None:
        """Say what the next tokens read, and let the cache keep the lookups that later ones read.

        Args:
            base: the model's.
            tokens: int64 [b, t].
            found: of the windows that end within these tokens; None where nothing was looked up.
            cache: of the tokens before.
        """
        (num_rows, num_tokens), m, s = tokens.shape, self._chunk_length, cache.step
        first, stop = (num_windows(length, m, s) for length in (cache.length, cache.length + num_tokens))
        ends = [m + window * s for window in range(first, stop)]
        if found is None:
            new = [Lookup(end - 1, [{}] * num_rows) for end in ends]
        else:
            known = cache.known(tokens)
            first_known = cache.length + num_tokens - known.shape[1]
            offsets = self._offsets(found, known, [end - first_known for end in ends])
            new = self._lookups(base, found, offsets, ends, cache.padding)
        windows = self._windows(cache.lookups, new, begun=cache.reading)
        if windows:  # the next calls read the newest one again
            joined = windows[-1].joined or Joined()
            if num_tokens > 1 or joined.past is not cache.past:
                joined.past, joined.num_own = cache.past, {}
            if windows[-1].joined is None:
                windows[-1] = replace(windows[-1], joined=joined)
            cache.reading = windows[-1]
        cache.lookups = [*cache.lookups, *new][-self.lookups_read :]
        return self._reading(windows, cache.length) if any(map(any, (window.rows for window in windows))) else None

    def extend(self, base: PreTrainedModel, tokens: Tensor, cache: RetrofitCache, found: Retrieved | None) -> Tensor:
        """Run more tokens through a base, in parts of bounded memory; returns logits float [b, t, v].

        Args:
            base: the model's.
            tokens: int64 [b, t], those that follow what the cache has seen.
            cache: counts them.
            found: of the windows that these tokens close; None where nothing was looked up.
        """
        outputs, window = [], 0
        for part in tokens.split(self._part_length(base, found, cache.step), dim=1):
            count = cache.num_new_windows(part.shape[1])
            of_part = None if found is None else found.windows(window, window + count)
            window += count
            reading = self._after(base, part, of_part, cache)
            arguments = padded_arguments(cache, part.shape[1]) | {ARGUMENT: reading}
            with self.states.narrow.running(base) as running:
                output = running(input_ids=part, past_key_values=cache.past, use_cache=True, **arguments)
            cache.advance(part)
            outputs.append(output.logits)
        return torch.cat(outputs, dim=1)

    def _reading(self, windows: list[WindowNeighbours], first: int) -> JointReading:
        maps = {int(layer): cast(ReadingMaps, each) for layer, each in self.maps.items()}
        return JointReading(self._layers, windows, first, maps, watch=self.watch)

    def _offsets(self, found: Retrieved, known: Tensor, ends: list[int]) -> Tensor:
        """Say what is added to the logits of neighbours, float64 [b, W, k].

        Args:
            found: of W windows.
            known: int64 [b, *], of `known_tokens`.
            ends: of the windows in it.
        """
        if self._unrelated_offset is None or not ends:
            return torch.full(found.tokens.shape[:3], self._offset, dtype=torch.float64)
        windows = torch.stack([known[:, end - self._chunk_length : end] for end in ends], dim=1)
        related = (shared_pairs(windows, found) / RELATED).clamp(max=1.0)
        return self._unrelated_offset + (self._offset - self._unrelated_offset) * related

    def _lookups(
        self, base: PreTrainedModel, found: Retrieved, offsets: Tensor, ends: list[int], padding: Tensor | None
    ) -> list[Lookup]:
        texts = [list(_texts(found.windows(w, w + 1), end, padding)) for w, end in enumerate(ends)]
        most, listed = found.tokens.shape[:3].numel(), offsets.tolist()
        states = self.states.of(base, (text for window in texts for row in window for text in row.values()), most=most)
        return [
            Lookup(
                end - 1,
                [
                    {text: Neighbour(states[text], listed[row][w][number]) for number, text in neighbours.items()}
                    for row, neighbours in enumerate(texts[w])
                ],
            )
            for w, end in enumerate(ends)
        ]

    def _windows(
        self, before: Sequence[Lookup], new: Sequence[Lookup], *, begun: WindowNeighbours | None = None
    ) -> list[WindowNeighbours]:
        """Say what is read from the newest of the lookups before on (`begun`, if given), and from each new one on."""
        lookups, windows = [*before, *new], [] if begun is None else [begun]
        for number in range(max(0, len(before) - (begun is None)), len(lookups)):
            read = lookups[max(0, number + 1 - self.lookups_read) : number + 1]
            rows = zip(*(lookup.rows for lookup in read), strict=True)
            windows.append(WindowNeighbours(read[-1].start, [_union(row) for row in rows]))
        return windows

    def _part_length(self, base: PreTrainedModel, found: Retrieved | None, step: int) -> int:
        """How many tokens of a long prompt are run together, so that states and masks have bounded memory."""
        if found is None:
            return _TOKENS_AT_ONCE
        width: int = base.config.hidden_size  # of keys at most: heads may share them
        bytes_of_token = 2 * len(self._layers) * width * torch.finfo(base.dtype).bits // 8
        windows = STATES_AT_ONCE // max(1, found.tokens[:, 0].numel() * bytes_of_token)
        if windows >= found.tokens.shape[1]:
            return _TOKENS_AT_ONCE
        return min(_TOKENS_AT_ONCE, max(1, windows) * step)


def _union(lookups: Iterable[dict[Text, Neighbour]]) -> list[Neighbour]:
    """The neighbours of several lookups of a row; a text of several has its highest offset."""
    union: dict[Text, Neighbour] = {}
    for found in lookups:
        for text, neighbour in found.items():
            if text not in union or union[text].offset < neighbour.offset:
                union[text] = neighbour
    return list(union.values())


def shared_pairs(windows: Tensor, found: Retrieved) -> Tensor:
    """Return the share of each window's pairs of adjacent tokens that stand in its neighbours, float64 [b, W, k].

    Args:
        windows: int64 [b, W, m]; what is no token is negative.
        found: of these windows.
    """
    same = windows[:, :, None, :, None] == found.tokens[..., None, :]  # [b, W, k, m, r]
    if found.mask is not None:
        same = same & found.mask[..., None, :]
    shared = (same[..., :-1, :-1] & same[..., 1:, 1:]).any(-1).sum(-1)
    pairs = ((windows[..., 1:] >= 0) & (windows[..., :-1] >= 0)).sum(-1, keepdim=True)
    return shared.double() / pairs.clamp(min=1)


def _texts(found: Retrieved, end: int, padding: Tensor | None) -> Iterator[dict[int, Text]]:
    """The texts that each row reads of one window, W = 1, by their numbers; none where the window is padding alone."""
    tokens = found.tokens[:, 0].tolist()  # [b, k, r]
    masks = None if found.mask is None else found.mask[:, 0].tolist()
    paddings = [0] * len(tokens) if padding is None else padding.tolist()
    for row, neighbours in enumerate(tokens):
        texts = {}
        for number, ids in enumerate(neighbours):
            places = [place for place in range(len(ids)) if masks is None or masks[row][number][place]]
            if places and paddings[row] < end:
                texts[number] = tuple(ids[place] for place in places), tuple(places)
        yield texts


def _scale_as_from_0(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Let queries that are scaled by the logarithm of their position be scaled as if there were none below 0."""
    positions: Tensor | None = kwargs.get("position_ids")
    return None if positions is None else (args, kwargs | {"position_ids": positions.clamp(min=0)})


def sink_of(config: Any) -> int:
    """The token that a text begins with: the beginning of text, else the end of text, else the first of all."""
    given = config.eos_token_id if config.bos_token_id is None else config.bos_token_id
    return int(given[0] if isinstance(given, list) else given or 0)
