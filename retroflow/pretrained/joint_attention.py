"""Attention of a base that reads neighbours: one softmax over a position's own keys and those of its neighbours.

    o_i = softmax([q_i K_own[<= i], q_i K_neighbours[w(i)]] / sqrt(h)) [V_own, V_neighbours]

where w(i) is the newest window that has ended with position i (retroflow/model/windows.py). It is registered with
transformers as an attention function, which is one place for all families. A keyword argument that travels through
the base says what is read; without it the base computes what it always does.

Shapes: b batch, t tokens of a call, s own keys (those of a cache before the t), a heads, g heads of keys (a multiple of
g is a), h features of a head, W windows, k neighbours, r tokens of a neighbour.
"""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from retroflow.pretrained.base_cache import WindowNeighbours
from retroflow.pretrained.neighbour_reader import ARGUMENT
from retroflow.pretrained.neighbour_states import Capture
from retroflow.pretrained.reading_maps import ReadingMaps, linear_maps

Made = TypeVar("Made")

NAME = "retroflow_joint"
"""Of the attention function, in transformers."""

_READING: ContextVar["JointReading | None"] = ContextVar("reading", default=None)
"""What the layer that runs reads."""

EXACT = (torch.float32, torch.float64)
"""Precisions in which a single token may attend by plain products; logits in less would be rounded."""

Watch = Callable[[slice, int, Tensor, Tensor, Tensor | None, float], None]
"""Gets a part of a call's tokens, the number of own keys, and queries, keys, mask and scaling, as `_attend` does."""

OWN_KEYS_AT_ONCE = {"cpu": 0}
"""Type of device -> bytes of own keys that may be copied so that several windows attend in one call; 128 MiB elsewhere.

A CPU does the least work where each window attends alone, to the own keys before its end. A GPU would wait for the many
small kernels to start.
"""


@dataclass(frozen=True)
class JointReading:
    """What the tokens of one call read.

    Attributes:
        layers: number of a reading layer, from 1 -> its place in the states.
        windows: that begin within these tokens, or have begun before them; in their order.
        first: position of the first token.
        maps: number of a reading layer -> its trained maps; empty where nothing is trained.
        question: float [b, a, t, h], what the maps add to the queries of a layer; None outside layers.
        watch: is shown what attends to what; None shows nobody.
    """

    layers: dict[int, int]
    windows: Sequence[WindowNeighbours]
    first: int
    maps: Mapping[int, ReadingMaps] = field(default_factory=dict)
    question: Tensor | None = None
    watch: Watch | None = None
    _made: dict[Any, Any] = field(default_factory=dict)

    @property
    def reads(self) -> bool:
        """Whether any token reads a neighbour."""
        return any(length for window in self.windows for length in window.lengths)

    def once(self, make: Callable[..., Made], *given: Any) -> Made:
        """Call a function, once for all layers that give it the same objects."""
        key = (
            make,
            *(each if isinstance(each, int | float | torch.dtype | torch.device) else id(each) for each in given),
        )
        if key not in self._made:
            self._made[key] = make(*given), given  # which stay alive, and their ids their own
        return cast(Made, self._made[key][0])


def attend_jointly(
    reading: JointReading,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> Tensor:
    """Attend to own keys and neighbours'; see the module's own words.

    Args:
        reading: what the tokens read.
        layer: number of the reading layer, from 1.
        query: float [b, a, t, h], positions in it.
        key, value: float [b, g, s, h], positions in the key; the last t are of these tokens.
        own_mask: bool [b or 1, 1, t, s], True where an own key is seen; None for plain causality.
        dropout, scaling: of attention and of its logits; None for 1 / sqrt(h).

    Returns:
        float [b, a, t, h].
    """
    num_rows, length, before = query.shape[0], query.shape[2], key.shape[2] - query.shape[2]
    at_once = max(1, OWN_KEYS_AT_ONCE.get(query.device.type, 1 << 27) // key.nbytes) if reading.watch is None else 1
    maps, outputs, scale = reading.maps.get(layer), [], query.shape[3] ** -0.5 if scaling is None else scaling
    for part, window in reading.once(_segments, reading.windows, reading.first, length, at_once):
        num_own = before + part.stop
        count = 1 if window is None else len(window.rows) // num_rows
        asking, keys, values = _apart(query[:, :, part], count), key[:, :, :num_own], value[:, :, :num_own]
        mask = reading.once(_mask, own_mask, part, num_own, window, num_rows, query.device)
        if count > 1:
            keys, values = keys.repeat_interleave(count, dim=0), values.repeat_interleave(count, dim=0)
        counts, shared = (num_own, 0 if window is None else max(window.lengths)), query.shape[1] // key.shape[1]
        added = reading.once(_added, mask, shared, value.dtype, value.device, *counts, window and window.offsets)
        question = None if reading.question is None else _apart(reading.question[:, :, part], count)
        widening = maps if maps is not None and maps.widens else None
        is_single = length == 1 and not dropout and reading.watch is None
        if window is None:
            attended = _attend(asking, keys, values, added, dropout, scale)
        elif not (widening or reading.watch) and (joining := window.joining(is_single, before == reading.first)):
            pair = joining.before_own(reading.layers[layer], keys, values)
            swapped = None if added is None else reading.once(torch.roll, added, counts[1], -1)
            attended = _attend(asking, *pair, swapped, dropout, scale)
        elif is_single and query.dtype in EXACT:
            theirs = window.keys_and_values(reading.layers[layer])
            attended = _attend_apart(asking, question, (keys, values), theirs, added, scale, maps)
        else:
            theirs = window.keys_and_values(reading.layers[layer])
            if widening is not None:
                asking, keys, values = widening.side_by_side(asking, question, (keys, values), theirs, scale)
            else:
                keys, values = (torch.cat(both, dim=2) for both in zip((keys, values), theirs, strict=True))
            attended = _attend(asking, keys, values, added, dropout, scale)
            if reading.watch is not None:
                reading.watch(part, num_own, asking, keys, added, scale)
            attended = attended if widening is None else widening.together(attended)
        outputs.append(attended.unflatten(0, (num_rows, count)).transpose(1, 2).flatten(2, 3))
    return torch.cat(outputs, dim=2)


def attach_maps(blocks: Mapping[int, nn.Module], attention: str, trained: Sequence[str]) -> None:
    """Let the modules of reading layers, changed in place, compute what is trained of them.

    Args:
        blocks: number of a layer, from 1 -> the layer.
        attention: name of its attention, which computes what "query" adds to queries: an attention function gets them
            after rotation, and only the module gets what they are made from.
        trained: as in `ReadingMaps`.
    """
    for layer, block in blocks.items():
        if "query" in trained:
            block.get_submodule(attention).register_forward_pre_hook(_ask, with_kwargs=True)
        if "layers" in trained:
            block.forward = partial(_run_block, block.forward)
            for name, linear in linear_maps(block):
                linear.register_forward_hook(partial(_add_map, layer, name))


def _run_block(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a layer so that its linear maps know what is read; the base tells attention alone.

    This is inside of what activation checkpointing runs again.
    """
    passed = kwargs.get(ARGUMENT)
    before = _READING.set(passed if isinstance(passed, JointReading) else None)
    try:
        return forward(*args, **kwargs)
    finally:
        _READING.reset(before)


def _add_map(layer: int, name: str, linear: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor | None:
    reading = _READING.get()
    if reading is None or layer not in reading.maps:
        return None
    (x,) = args  # float [b, t, inputs], or [b * t, inputs] in some families
    where = reading.once(_where, reading.windows, reading.first, x.shape[:-1].numel(), x.dtype, x.device)
    added: Tensor = reading.maps[layer].layers[name](x, None if where is None else where.view(*x.shape[:-1], 1))
    return output + added


def _where(
    windows: Sequence[WindowNeighbours], first: int, num_positions: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """Say which of b * t positions, row after row, read a neighbour: float [b, t], 0 or 1; None if all do."""
    num_rows = len(windows[0].rows) if windows else 1
    where = torch.zeros(num_rows, length := num_positions // num_rows)
    starts = [min(max(0, window.start - first), length) for window in windows] + [length]
    for window, start, stop in zip(windows, starts[:-1], starts[1:], strict=True):
        where[:, start:stop] = (torch.tensor(window.lengths) > 0)[:, None]
    return None if where.all() else where.to(device, dtype)


def _ask(
    attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    reading = kwargs.get(ARGUMENT)
    if not isinstance(reading, JointReading):
        return None
    maps = reading.maps[int(attention.layer_idx) + 1]  # type: ignore[arg-type]
    question = maps.question(args[0] if args else kwargs["hidden_states"])
    return args, kwargs | {ARGUMENT: replace(reading, question=question)}


def _attention_function(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers asks every attention function to; returns float [b, t, a, h]."""
    passed = kwargs.pop(ARGUMENT, None)
    layer = int(module.layer_idx) + 1  # type: ignore[arg-type]
    if isinstance(passed, Capture):
        passed.take(layer, key, value)
    if isinstance(passed, JointReading) and layer in passed.layers:
        attended = attend_jointly(passed, layer, query, key, value, attention_mask, dropout=dropout, scaling=scaling)
        return attended.transpose(1, 2), None
    own: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return own


def _segments(
    windows: Sequence[WindowNeighbours], first: int, num_tokens: int, at_once: int
) -> list[tuple[slice, WindowNeighbours | None]]:
    """Cut t tokens where another window begins.

    Args:
        windows: as in `JointReading`.
        first: position of the first token.
        num_tokens: t.
        at_once: windows in a row, of equally many tokens, that may stay together.

    Returns:
        A part of the tokens, and what it reads; W windows that stay together are W rows for each row of the batch.
    """
    starts = [min(max(0, window.start - first), num_tokens) for window in windows] + [num_tokens]
    cut: list[tuple[int, int, list[WindowNeighbours]]] = [(0, starts[0], [])]
    for window, start, stop in zip(windows, starts[:-1], starts[1:], strict=True):
        begin, _, together = cut[-1]
        reads = any(window.lengths)
        if reads and 0 < len(together) < at_once and start - begin == len(together) * (stop - start):
            cut[-1] = (begin, stop, [*together, window])
        else:
            cut.append((start, stop, [window] if reads else []))
    return [(slice(begin, stop), _side_by_side(together)) for begin, stop, together in cut if begin < stop]


def _side_by_side(windows: list[WindowNeighbours]) -> WindowNeighbours | None:
    """For each row of a batch the rows of these windows; None of none."""
    if len(windows) < 2:
        return windows[0] if windows else None
    rows = [row for of_row in zip(*(window.rows for window in windows), strict=True) for row in of_row]
    return WindowNeighbours(windows[0].start, rows)


def _apart(x: Tensor, count: int) -> Tensor:
    """Make rows of W windows: [b, c, W * t, f] -> [b * W, c, t, f]."""
    return x.unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1)


def _mask(
    own: Tensor | None,
    part: slice,
    num_own: int,
    window: WindowNeighbours | None,
    num_rows: int,
    device: torch.device,
) -> Tensor | None:
    """Say which keys a part of the tokens sees.

    Args:
        own: bool [b or 1, 1, t, s], the base's own; None for plain causality.
        part: of the t tokens.
        num_own: keys of the base that are given; the last is of the part's last token.
        window: that the part reads; W windows together have W * b rows.
        num_rows: b.
        device: of the mask.

    Returns:
        bool [b * W, 1, tokens of a window, own keys and neighbours'], one row if all are equal; None where all is seen.
    """
    lengths, length = [0] * num_rows if window is None else window.lengths, part.stop - part.start
    if own is None and length == 1 and len(set(lengths)) == 1:
        return None
    if own is None:
        keys = torch.arange(num_own, device=device)
        own = (keys <= keys[num_own - length :, None])[None, None]
    else:
        own = own[:, :, part, :num_own]
        # Padding sees nothing, and a softmax over nothing is no number, which weights of 0 would spread.
        own = own | ~own.any(dim=3, keepdim=True)
    if len(own) == 1 and len(lengths) == num_rows and len(set(lengths)) == 1:
        num_rows, lengths = 1, lengths[:1]
    own = _apart(own.expand(num_rows, -1, -1, -1), len(lengths) // num_rows)
    there = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]
    return torch.cat((own, there[:, None, None].expand(-1, 1, own.shape[2], -1)), dim=3)


def _added(
    mask: Tensor | None,
    shared: int,
    dtype: torch.dtype,
    device: torch.device,
    num_own: int,
    num_theirs: int,
    offsets: Tensor | None,
) -> Tensor | None:
    """What is added to logits float [b, 1, shared * t, s].

    Args:
        mask: bool [b, 1, t, s], as from `_mask`.
        shared: heads that share keys.
        dtype: of the logits.
        device: of the logits.
        num_own: own keys, which come first.
        num_theirs: keys of neighbours.
        offsets: float64 [b or 1, keys of neighbours], of their logits; None for none.
    """
    if mask is None and offsets is None:
        return None
    if mask is None:
        mask = torch.ones(1, 1, 1, num_own + num_theirs, dtype=torch.bool, device=device)
    added = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)
    if offsets is not None:
        added = added.repeat(max(1, len(offsets) // len(added)), 1, 1, 1)
        added[..., num_own:] += offsets[:, None, None].to(dtype).to(device)
    return added.repeat(1, 1, shared, 1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scaling: float | None
) -> Tensor:
    """Attend with the fused kernel, the heads that share keys side by side as more queries; [b, a, t, h].

    The mask float [b, 1, a / g * t, s] is of `_added`.
    """
    num_rows, num_heads, length, width = query.shape
    query = query.reshape(num_rows, key.shape[1], -1, width)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return attended.reshape(num_rows, num_heads, length, width)


def _attend_apart(
    query: Tensor,
    question: Tensor | None,
    own: tuple[Tensor, Tensor],
    theirs: tuple[Tensor, Tensor],
    added: Tensor | None,
    scaling: float,
    maps: ReadingMaps | None,
) -> Tensor:
    """Attend with plain products, which copy no keys, and need no widened heads; returns float [b, a, 1, h].

    Args:
        query: float [b, a, 1, h].
        question: float [b, a, 1, h], as in `JointReading`.
        own: keys and values, float [b, g, s, h] each.
        theirs: keys and values of neighbours, float [b, g, j, h] each.
        added: float, of `_added`.
        scaling: of the logits.
        maps: of the layer; None where nothing is trained.
    """
    asking = query if maps is None else maps.asking(query, question)
    shape = (len(query), own[0].shape[1], -1, query.shape[3])
    asked = ((query, own[0]), (asking, theirs[0]))
    logits = [scaling * (each.reshape(shape) @ keys.transpose(-1, -2)) for each, keys in asked]
    if maps is not None and maps.offset is not None:
        logits[1] = logits[1] + maps.offset.view(shape[1], -1, 1).to(query.dtype)
    joined = torch.cat(logits, dim=-1)
    weights = (joined if added is None else joined + added).softmax(dim=-1)
    parts = weights.split([own[0].shape[2], theirs[0].shape[2]], dim=-1)
    mine, answers = ((each @ pair[1]).reshape(query.shape) for each, pair in zip(parts, (own, theirs), strict=True))
    return mine + (answers if maps is None else maps.answering(answers))


AttentionInterface.register(NAME, _attention_function)
AttentionMaskInterface.register(NAME, sdpa_mask)
