"""A base that reads with its own attention equals a slow, literal computation, and keeps RETRO's promises; in float64."""

import copy
import math
import threading
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from retroflow.errors import InvalidShapeError, UsageError
from retroflow.pretrained import joint_attention, neighbour_states
from retroflow.pretrained.base_cache import Neighbour, WindowNeighbours
from retroflow.pretrained.base_models import fingerprint
from retroflow.pretrained.inherited_reader import sink_of
from retroflow.pretrained.joint_attention import JointReading, attend_jointly
from retroflow.pretrained.reading_maps import ReadingMaps, linear_maps
from retroflow.pretrained.retrofit import RetrofitModel
from retroflow.pretrained.retrofit_config import RetrofitConfig
from tests.pretrained.bases import CHUNK, DEEP, FAMILIES, VOCABULARY, assert_rows_can_join, make_base
from tests.pretrained.bases import make_related_batch as make_batch

TOLERANCE = 1e-11
LEARNED_POSITIONS = ("gpt2", "gpt_bigcode", "opt")
SLIDING = ("mistral", "ministral", "mixtral", "qwen2", "phi3", "starcoder2")

# One of each kind of position, head, window and layer; what depends on more is tested on all families.
KINDS = ["gpt2", "gpt_bigcode", "gpt_neox", "llama", "mistral", "ministral3", "qwen2", "qwen3_moe", "gemma", "opt"]

pytestmark = pytest.mark.filterwarnings("ignore")


ALL = ("scale", "query", "answer", "layers")
TRAINED = ("gpt2", "gpt_bigcode", "gpt_neox", "gemma", "opt", "qwen2")  # one of each way to call an attention


@pytest.fixture(params=[*FAMILIES, *(f"{family}, trained" for family in TRAINED)])
def family(request):
    return request.param


@pytest.fixture(params=FAMILIES)
def every_family(request):
    return request.param


@pytest.fixture(params=[*KINDS, *(f"{family}, trained" for family in TRAINED), "gpt2, lasting", "qwen2, lasting"])
def kind(request):
    return request.param


def make_options(**changes):
    sizes = {"vocabulary_size": VOCABULARY, "chunk_length": CHUNK, "base": "a base in memory", "reader": "inherit"}
    return RetrofitConfig(**(sizes | changes))


def make_model(family="llama", *, base=None, dtype=torch.float64, **changes):
    """A model in evaluation mode; "FAMILY, trained" has random maps, "FAMILY, lasting" reads on, and not everything."""
    family, _, what = family.partition(", ")
    trained = what == "trained"
    if what == "lasting":
        changes = {"lookups_read": 2, "neighbour_offset": -0.7, "unrelated_offset": -1.9} | changes
    if trained:
        changes = {"trained": ALL, "rank": 3} | changes
    model = RetrofitModel(make_options(**changes), base or make_base(family, dtype=dtype)).to(dtype).eval()
    if trained:
        torch.manual_seed(1)
        for parameter in model.retrieval.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def changed_positions(before, after):
    return ((before - after).abs() > TOLERANCE).any(-1).any(0).nonzero().flatten().tolist()


def one_long_text(model, base, tokens, retrieved, mask):
    """The logits of one row by the base alone: all neighbours before the text, and a mask that says who sees whom."""
    r, learned = 2 * CHUNK, model.max_length is not None
    ids, positions, owners = [], [], []  # an owner is (window, neighbour), with None for a sink; (-1, -1) is the text
    for window, neighbours in enumerate(retrieved):
        for number, neighbour in enumerate(neighbours):
            for place in range(-1, r):
                if place < 0 or mask[window, number, place]:
                    ids.append(sink_of(base.config) if place < 0 else int(neighbour[place]))
                    positions.append(place + 1 if learned else place - r)
                    owners.append((window, number, place < 0))
    count = len(ids)
    ids += tokens.tolist()
    positions += range(len(tokens))
    sees = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for query in range(len(ids)):
        for key in range(query + 1):
            if query < count:
                sees[query, key] = owners[query][:2] == owners[key][:2]
            elif key >= count:
                sees[query, key] = True
            else:
                window, _, is_sink = owners[key]
                end = (window + 1) * CHUNK
                sees[query, key] = not is_sink and end - 1 <= query - count < end - 1 + CHUNK
    logits = base(
        input_ids=torch.tensor([ids]), position_ids=torch.tensor([positions]), attention_mask=sees[None, None]
    ).logits
    return logits[0, count:]


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in (*SLIDING, "ministral3")])
def test_reading_equals_one_long_text_with_a_mask(family):
    tokens, retrieved, mask = make_batch(num_rows=1)
    model, base = make_model(family), make_base(family, dtype=torch.float64)
    wanted = one_long_text(model, base, tokens[0], retrieved[0], mask[0])
    torch.testing.assert_close(model(tokens, retrieved, mask)[0], wanted, rtol=0, atol=TOLERANCE)


def literal(query, key, value, neighbours, starts, scaling, maps=None, x=None):
    """o_i, a position and a head at a time, in Python's own numbers."""
    heads, length, width = query.shape
    shared = heads // key.shape[0]
    result, theirs = (torch.zeros(heads, length, width, dtype=torch.float64) for _ in range(2))
    asking, offsets = query, torch.zeros(heads, dtype=torch.float64)
    if maps is not None:
        question = (maps.query.up @ maps.query.down @ x.T).view(heads, width, length).transpose(1, 2)
        asking, offsets = maps.factor[:, None, None] * (query + question), maps.offset
    for head in range(heads):
        group = head // shared
        for i in range(length):
            terms = [(query[head, i], key[group, j], 0.0, value[group, j], result) for j in range(i + 1)]
            begun = [number for number, start in enumerate(starts) if start <= i]
            if begun:
                for (keys, values), offset in neighbours[begun[-1]]:
                    terms += [
                        (asking[head, i], keys[group, j], offset + offsets[head], values[group, j], theirs)
                        for j in range(keys.shape[1])
                    ]
            logits = [
                scaling * sum(float(a) * float(b) for a, b in zip(q, k, strict=True)) + float(offset)
                for q, k, offset, _, _ in terms
            ]
            weights = [math.exp(logit - max(logits)) for logit in logits]
            for weight, (*_, v, part) in zip(weights, terms, strict=True):
                part[head, i] += weight / sum(weights) * v
    if maps is not None:
        flat = theirs.transpose(1, 2).reshape(-1, length)  # [a * h, t]
        theirs = theirs + (maps.answer.up @ maps.answer.down @ flat).view(heads, width, length).transpose(1, 2)
    return result + theirs


@torch.no_grad()
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("heads", "offsets"), [(4, (0.0, 0.0, 0.0)), (2, (0.0, 0.0, 0.0)), (4, (-0.6, -0.6, -0.6)), (4, (-0.6, -1.7, 0.4))]
)
def test_attention_is_one_softmax_over_own_keys_and_neighbours(heads, offsets, trained):
    torch.manual_seed(0)
    groups, length, width = 2, 9, 6
    query, key, value = (torch.randn(2, n, length, width).double() for n in (heads, groups, groups))
    starts = (3, 8)  # the last part is a single token
    rows = [
        [
            [
                Neighbour(torch.randn(1, 2, groups, size, width).double(), offset)
                for size, offset in zip(sizes, offsets, strict=False)
            ]
            for sizes in of_window
        ]
        for of_window in ([(5, 5), (2,)], [(3, 4, 1), ()])
    ]
    windows = [WindowNeighbours(start, neighbours) for start, neighbours in zip(starts, rows, strict=True)]
    maps, x = None, torch.randn(2, length, 5).double()
    if trained:
        maps = ReadingMaps(("scale", "query", "answer"), width=5, num_heads=heads, head_width=width, rank=3).double()
        for parameter in maps.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    reading = JointReading({2: 0}, windows, 0, {2: maps} if trained else {}, maps.question(x) if trained else None)
    found = attend_jointly(reading, 2, query, key, value, None, scaling=0.7)
    for row in range(2):
        states = [[((state[0, 0], state[0, 1]), offset) for state, offset in window[row]] for window in rows]
        wanted = literal(query[row], key[row], value[row], states, starts, 0.7, maps, x[row])
        torch.testing.assert_close(found[row], wanted, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_retrieval_off_is_the_base_bit_for_bit(family):
    tokens, _, _ = make_batch()
    wanted = make_base(family.removesuffix(", trained"), dtype=torch.float64)(tokens).logits
    model = make_model(family)
    assert torch.equal(model(tokens), wanted)
    assert torch.equal(model.base(tokens).logits, wanted)
    assert bool(list(model.retrieval.parameters())) == family.endswith("trained")


@torch.no_grad()
def test_maps_change_nothing_until_they_are_trained(every_family):
    tokens, retrieved, mask = make_batch()
    wanted = make_model(every_family)(tokens, retrieved, mask)
    new = make_model(every_family, trained=ALL)
    torch.testing.assert_close(new(tokens, retrieved, mask), wanted, rtol=0, atol=TOLERANCE)
    for name in ALL:
        trained = make_model(f"{every_family}, trained", trained=(name,), rank=16)
        assert not torch.allclose(trained(tokens, retrieved, mask), wanted)


@torch.no_grad()
def test_a_layer_with_maps_is_another_layer_from_the_first_neighbours_on(every_family):
    """The weights W become W + U D there; neighbours, and tokens before, run through the base as it is."""
    tokens, retrieved, mask = make_batch()
    model = make_model(f"{every_family}, trained", trained=("layers",))
    wanted = model(tokens, retrieved, mask)
    other = make_model(every_family)
    for number, block in enumerate(other.blocks, start=1):
        for name, linear in linear_maps(block):
            maps = model.retrieval.maps[str(number)].layers[name]
            product = maps.up @ maps.down
            linear.weight += product.T if isinstance(linear, Conv1D) else product
    states = make_model(every_family)
    other.retrieval.states.of = lambda _, texts, most: states.retrieval.states.of(states.base, texts, most=most)
    cache = other.new_cache()
    before = states.extend(tokens[:, : CHUNK - 1], cache)
    after = other.extend(tokens[:, CHUNK - 1 :], cache, retrieved, mask)
    torch.testing.assert_close(torch.cat((before, after), dim=1), wanted, rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_token_changes_no_logit_before_it(kind):
    tokens, retrieved, mask = make_batch(num_rows=1)
    model = make_model(kind)
    before = model(tokens, retrieved, mask)
    for position in range(tokens.shape[1]):
        other = tokens.clone()
        other[:, position] = (other[:, position] + 1) % VOCABULARY
        assert changed_positions(before, model(other, retrieved, mask))[0] == position


@torch.no_grad()
def test_neighbours_of_a_chunk_change_nothing_before_the_last_token_of_that_chunk(family):
    tokens, retrieved, mask = make_batch(num_rows=1)
    model = make_model(family)
    before = model(tokens, retrieved, mask)
    for chunk in range(retrieved.shape[1]):
        other = retrieved.clone()
        other[:, chunk] = (other[:, chunk] + 1) % VOCABULARY
        assert changed_positions(before, model(tokens, other, mask))[0] == (chunk + 1) * CHUNK - 1


@torch.no_grad()
def test_every_prefix_gives_the_same_logits(kind):
    tokens, retrieved, mask = make_batch(num_rows=1)
    model = make_model(kind)
    whole = model(tokens, retrieved, mask)
    for length in range(1, tokens.shape[1] + 1):
        chunks = length // CHUNK
        prefix = model(tokens[:, :length], retrieved[:, :chunks], mask[:, :chunks])
        torch.testing.assert_close(prefix, whole[:, :length], rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_a_masked_neighbour_equals_an_absent_one_and_none_at_all_equals_off(kind):
    tokens, retrieved, _ = make_batch()
    model = make_model(kind)
    second_masked = torch.ones(retrieved.shape[:3], dtype=torch.bool)
    second_masked[:, :, 1] = False
    torch.testing.assert_close(
        model(tokens, retrieved, second_masked), model(tokens, retrieved[:, :, :1]), rtol=0, atol=TOLERANCE
    )
    torch.testing.assert_close(
        model(tokens, retrieved, torch.zeros_like(second_masked)), model(tokens), rtol=0, atol=TOLERANCE
    )


@torch.no_grad()
def test_order_of_neighbours_does_not_matter_but_order_inside_one_does(kind):
    tokens, retrieved, mask = make_batch()
    model = make_model(kind)
    before = model(tokens, retrieved, mask)
    torch.testing.assert_close(model(tokens, retrieved.flip(2), mask.flip(2)), before, rtol=0, atol=TOLERANCE)
    assert not torch.allclose(model(tokens, retrieved.flip(3), mask.flip(3)), before)


@torch.no_grad()
def test_rows_do_not_influence_each_other(kind):
    tokens, retrieved, mask = make_batch(num_rows=3)
    model = make_model(kind)
    whole = model(tokens, retrieved, mask)
    for row in range(3):
        alone = model(tokens[row : row + 1], retrieved[row : row + 1], mask[row : row + 1])
        torch.testing.assert_close(alone[0], whole[row], rtol=0, atol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize(
    ("step", "lengths", "padding"),
    [
        (CHUNK, (1,) * 13, None),
        (CHUNK, (5, 1, 3, 4), None),
        (CHUNK, (8, 1, 4), (0, 6)),
        (1, (3, 10), None),
        (1, (8, 5), (2, 3)),
        (3, (13,), (0, 6)),
    ],
)
def test_cached_equals_uncached(kind, step, lengths, padding):
    tokens, retrieved, mask = make_batch(step=step)
    padding = None if padding is None else torch.tensor(padding)
    model = make_model(kind)
    wanted = model(tokens, retrieved, mask, padding=padding, retrieval_step=step)
    cache, parts, window = model.new_cache(padding=padding, retrieval_step=step), [], 0
    for part in tokens.split(lengths, dim=1):
        new = slice(window, window := window + cache.num_new_windows(part.shape[1]))
        parts.append(model.extend(part, cache, retrieved[:, new], mask[:, new]))
    given = torch.ones_like(tokens, dtype=torch.bool)
    if padding is not None:
        given = torch.arange(tokens.shape[1]) >= padding[:, None]
    torch.testing.assert_close(torch.cat(parts, dim=1)[given], wanted[given], rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "mistral", "qwen2, trained", "qwen2, lasting"])
@pytest.mark.parametrize(("step", "padding"), [(CHUNK, None), (CHUNK, (0, 6)), (1, (2, 3)), (3, None)])
def test_windows_that_attend_in_one_call_read_the_same(family, step, padding, monkeypatch):
    tokens, retrieved, mask = make_batch(step=step, length=19)
    mask[1, 1] = False
    given = torch.arange(tokens.shape[1]) >= torch.tensor(padding or (0, 0))[:, None]
    padding = None if padding is None else torch.tensor(padding)
    model = make_model(family)
    wanted = model(tokens, retrieved, mask, padding=padding, retrieval_step=step)
    for most in (3000, 1 << 20):  # some of the windows, all of them
        monkeypatch.setitem(joint_attention.OWN_KEYS_AT_ONCE, "cpu", most)
        found = model(tokens, retrieved, mask, padding=padding, retrieval_step=step)
        torch.testing.assert_close(found[given], wanted[given], rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_a_long_prompt_is_read_in_parts(monkeypatch):
    tokens, retrieved, mask = make_batch()
    model = make_model()
    wanted = model(tokens, retrieved, mask)
    monkeypatch.setattr("retroflow.pretrained.inherited_reader.STATES_AT_ONCE", 1)
    torch.testing.assert_close(model.extend(tokens, model.new_cache(), retrieved, mask), wanted, rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_cache_can_keep_some_rows(kind):
    tokens, retrieved, mask = make_batch(num_rows=3)
    model = make_model(kind)
    rows = torch.tensor([2, 0])
    cache = model.new_cache(padding=torch.tensor([0, 5, 2]))
    model.extend(tokens[:, :9], cache, retrieved[:, :2], mask[:, :2])
    wanted = model.extend(tokens[:, 9:], copy.deepcopy(cache), retrieved[:, 2:], mask[:, 2:])
    cache.select(rows)
    kept = model.extend(tokens[rows, 9:], cache, retrieved[rows, 2:], mask[rows, 2:])
    torch.testing.assert_close(kept, wanted[rows], rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_a_cache_and_its_snapshot_continue_apart(kind):
    """Both write their own keys behind neighbours that they share."""
    tokens, retrieved, mask = make_batch()
    model, begun = make_model(kind), CHUNK + 1
    cache = model.new_cache()
    model.extend(tokens[:, :begun], cache, retrieved[:, :1], mask[:, :1])
    model.extend(tokens[:, begun : begun + 1], cache)
    other = torch.cat((tokens[:, : begun + 1], tokens[:, :1], tokens[:, begun + 1 :]), dim=1)
    pairs = [(tokens, cache), (other, cache.snapshot())]
    for place in range(begun + 1, 2 * CHUNK - 1):
        for text, own in pairs:
            found = model.extend(text[:, place : place + 1], own)[:, 0]
            wanted = model(text[:, : place + 1], retrieved[:, :1], mask[:, :1])[:, -1]
            torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("step", [1, 2, CHUNK])
def test_rows_can_join_others(kind, step):
    assert_rows_can_join(make_model(kind), step=step, tolerance=TOLERANCE)


@torch.no_grad()
def test_a_window_without_a_lookup_ends_the_one_before():
    tokens, retrieved, mask = make_batch()
    model = make_model()
    cache = model.new_cache()
    model.extend(tokens[:, :CHUNK], cache, retrieved[:, :1], mask[:, :1])
    after = model.extend(tokens[:, CHUNK:], cache)
    there = mask.clone()
    there[:, 1:] = False
    torch.testing.assert_close(after, model(tokens, retrieved, there)[:, CHUNK:], rtol=0, atol=1e-9)


@torch.no_grad()
def test_neighbours_of_several_lookups_are_read_as_if_one_had_found_them_each_text_once():
    tokens, retrieved, mask = make_batch()
    mask[:] = True
    retrieved[:, 1, 0] = retrieved[:, 0, 1]
    before = torch.cat((retrieved[:, :1], retrieved[:, :-1]), dim=1)
    there = mask.clone()
    there[:, 0] = False  # nothing was found before
    there[:, 1, 1] = False  # is found again
    together, masks = torch.cat((before, retrieved), dim=2), torch.cat((there, mask), dim=2)
    wanted = make_model("qwen2")(tokens, together, masks)
    found = make_model("qwen2", lookups_read=2)(tokens, retrieved, mask)
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)
    everything = make_model("qwen2", lookups_read=9)(tokens, retrieved, mask)
    assert changed_positions(wanted, everything)[0] == 3 * CHUNK - 1


def shared_pairs(window, neighbour, mask):
    """The share of a window's pairs of adjacent tokens that stand in a neighbour, a pair of places at a time."""
    shared = [
        any(mask[b] and mask[b + 1] and window[a : a + 2] == neighbour[b : b + 2] for b in range(len(neighbour) - 1))
        for a in range(len(window) - 1)
    ]
    return sum(shared) / len(shared) if shared else 0.0


@torch.no_grad()
@pytest.mark.parametrize(("step", "padding"), [(CHUNK, None), (3, (0, 6)), (1, (2, 3))])
def test_a_neighbour_s_offset_is_by_what_it_shares_with_its_window(step, padding, monkeypatch):
    """And of several windows that found it by the one with which it shares most."""
    tokens, retrieved, mask = make_batch(step=step)
    retrieved[:, 1, 0], mask[:, 1, 0] = retrieved[:, 0, 0], mask[:, 0, 0]  # is found again
    last = (retrieved.shape[1] - 1) * step
    retrieved[:, -1, 1, :2], mask[:, -1, 1, :2] = tokens[:, last : last + 2], True  # shares a single pair
    monkeypatch.setattr("retroflow.pretrained.inherited_reader.RELATED", 0.9)
    wanted, read = [], []
    for row in range(2):
        first = padding[row] if padding else 0
        for window in range(retrieved.shape[1]):
            start, end = window * step, window * step + CHUNK
            offsets = {}
            for earlier in (window - 1, window):
                if earlier < 0 or end - (window - earlier) * step <= first:
                    continue
                known = tokens[row, max(first, earlier * step) : max(first, earlier * step + CHUNK)].tolist()
                for number in range(2):
                    found = retrieved[row, earlier, number].tolist(), mask[row, earlier, number].tolist()
                    text = tuple((place, found[0][place]) for place in range(2 * CHUNK) if found[1][place])
                    offset = -2.0 + 1.5 * min(1.0, shared_pairs(known, *found) / 0.9)
                    offsets[text] = max(offset, offsets.get(text, offset))
            wanted.append((row, start, sorted((len(text), offset) for text, offset in offsets.items() if text)))
    make = JointReading.__init__

    def watched(self, layers, windows, *args, **kwargs):
        for window in windows:
            for row, neighbours in enumerate(window.rows):
                pairs = sorted((each.states.shape[3], each.offset) for each in neighbours)
                read.append((row, window.start + 1 - CHUNK, pairs))
        make(self, layers, windows, *args, **kwargs)

    monkeypatch.setattr(JointReading, "__init__", watched)
    model = make_model("qwen2", lookups_read=2, neighbour_offset=-0.5, unrelated_offset=-2.0)
    model(tokens, retrieved, mask, padding=None if padding is None else torch.tensor(padding), retrieval_step=step)
    assert len(wanted) == len(read)
    for (*place, offsets), (*other, found) in zip(sorted(wanted), sorted(read), strict=True):
        assert place == other and [size for size, _ in offsets] == [size for size, _ in found]
        assert [offset for _, offset in found] == pytest.approx([offset for _, offset in offsets])
    assert len({round(offset, 6) for *_, offsets in wanted for _, offset in offsets}) > 2


@torch.no_grad()
def test_unrelated_neighbours_are_read_less():
    tokens, retrieved, mask = make_batch()
    retrieved[:] = 50  # stands nowhere in the text
    off, mask[:] = make_model()(tokens), True
    read = [make_model(unrelated_offset=offset)(tokens, retrieved, mask) for offset in (None, -2.0, -40.0)]
    distances = [float((logits - off).abs().max()) for logits in read]
    assert distances == sorted(distances, reverse=True) and distances[0] > 0 and distances[-1] < 1e-9


@torch.no_grad()
@torch.no_grad()
def test_what_is_read_is_put_together_once_for_a_lookup():
    """And its tokens are counted once, though every layer asks for their number at every token."""
    model, (tokens, retrieved, mask) = make_model(lookups_read=2), make_batch()
    cache = model.new_cache()
    model.extend(tokens[:, : 2 * CHUNK], cache, retrieved[:, :2], mask[:, :2])
    reading = cache.reading
    for place in range(2 * CHUNK, 3 * CHUNK - 1):
        model.extend(tokens[:, place : place + 1], cache)
        assert cache.reading is reading and cache.reading.lengths is reading.lengths
    model.extend(tokens[:, 3 * CHUNK - 1 : 3 * CHUNK], cache, retrieved[:, 2:3], mask[:, 2:3])
    assert cache.reading is not reading


def test_the_lower_the_offset_the_less_is_read():
    tokens, retrieved, mask = make_batch()
    off = make_model()(tokens)
    read = [make_model(neighbour_offset=offset)(tokens, retrieved, mask) for offset in (0.0, -2.0, -4.0, -40.0)]
    distances = [float((logits - off).abs().max()) for logits in read]
    assert distances == sorted(distances, reverse=True) and distances[0] > 0 and distances[-1] < 1e-9


@torch.no_grad()
def test_padding_changes_no_other_position(kind):
    tokens, retrieved, mask = make_batch()
    model = make_model(kind)
    padded = model(tokens, padding=torch.tensor([0, 6]))
    torch.testing.assert_close(padded[1:, 6:], model(tokens[1:, 6:]), rtol=0, atol=TOLERANCE)
    for step in (1, CHUNK):  # step 1: segments of one token
        _, retrieved, mask = make_batch(step=step)
        read = model(tokens, retrieved, mask, padding=torch.tensor([0, 6]), retrieval_step=step)
        assert read.isfinite().all()


def test_loss_is_that_of_the_logits(kind):
    tokens, retrieved, mask = make_batch()
    model = make_model(kind)
    targets = tokens.roll(-1, dims=1)
    targets[0, 3] = -100
    logits = model(tokens, retrieved, mask)
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(model.loss(tokens, targets, retrieved, mask), wanted.view(targets.shape).sum(-1))


def test_only_the_maps_get_gradients_and_nothing_below_them_keeps_any(every_family, monkeypatch):
    tokens, retrieved, mask = make_batch()
    model = make_model(f"{every_family}, trained", reading_layers=(3, 5)).train()
    grown = {}

    def note(number, output):
        grown.setdefault(number, (output[0] if isinstance(output, tuple) else output).requires_grad)

    for number, layer in enumerate(model.blocks, start=1):
        layer.register_forward_hook(lambda module, args, output, number=number: note(number, output))
    model(tokens, retrieved, mask)  # computes the neighbours first, whose layers are the first that are seen
    assert not any(grown.values())
    grown.clear()
    model.loss(tokens, tokens, retrieved, mask).sum().backward()
    assert grown == {number: number >= 3 for number in range(1, DEEP + 1)}
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert (
        with_gradient
        == model.retrieval_parameters()
        == {f"retrieval.{n}" for n, _ in model.retrieval.named_parameters()}
    )
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.retrieval.parameters())


def test_gradients_of_the_maps_are_those_of_the_loss():
    tokens, retrieved, mask = make_batch()
    model = make_model("gpt2, trained")  # whose norms are in float64, too
    parameters = list(model.retrieval.parameters())
    model.loss(tokens, tokens, retrieved, mask).sum().backward()
    step, losses = 1e-5, []
    torch.manual_seed(2)
    directions = [torch.randn_like(parameter) for parameter in parameters]
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += sign * step * direction
            losses.append(model.loss(tokens, tokens, retrieved, mask).sum().item())
    wanted = sum((parameter.grad * way).sum().item() for parameter, way in zip(parameters, directions, strict=True))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(wanted, rel=1e-5)


def test_layers_that_are_computed_again_have_the_same_gradients():
    tokens, retrieved, mask = make_batch()
    gradients = []
    for again in (False, True):
        model = make_model("llama, trained")
        for block in model.blocks if again else ():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        model.loss(tokens, tokens, retrieved, mask).sum().backward()
        gradients.append([parameter.grad for parameter in model.retrieval.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("retrieves", [True, False])
def test_a_batch_without_neighbours_has_gradients_too(retrieves):
    tokens, retrieved, mask = make_batch()
    model = make_model("llama, trained")
    model.loss(tokens, tokens, retrieved, mask & retrieves).sum().backward()
    assert all((parameter.grad.abs().sum() > 0) == retrieves for parameter in model.retrieval.parameters())


def test_unfreeze_trains_through_the_neighbours_too():
    tokens, retrieved, mask = make_batch()
    model = make_model("gpt2", unfreeze=True).train()  # its norms are in float64, too
    model.loss(tokens, tokens, retrieved, mask).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert model.retrieval.states.num_bytes == 0
    name = "base.transformer.h.2.attn.c_attn.weight"
    weight, step = model.get_parameter(name), 1e-4
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[1, 20] += sign * step
            losses.append(model.loss(tokens, tokens, retrieved, mask).sum().item())
            weight[1, 20] -= sign * step
    assert gradients[name][1, 20].item() == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5)


@torch.no_grad()
def test_calls_in_threads_do_not_mix():
    model = make_model("llama, trained")
    batches = [make_batch(seed=seed) for seed in range(4)]
    wanted = [model(*batch) for batch in batches]
    found = [[] for _ in batches]

    def work(index):
        with torch.no_grad():
            found[index] = [model(*batches[index]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answers, one in zip(found, wanted, strict=True):
        assert len(answers) == 5 and all(torch.equal(answer, one) for answer in answers)


# What is kept of neighbours between calls.


@pytest.fixture
def passes(monkeypatch):
    """The texts that ran through the base, a list for each pass."""
    seen = []
    compute = neighbour_states.NeighbourStates._compute

    def counting(self, base, texts, autocast):
        seen.append(list(texts))
        return compute(self, base, texts, autocast)

    monkeypatch.setattr(neighbour_states.NeighbourStates, "_compute", counting)
    return seen


@torch.no_grad()
def test_equal_neighbours_are_computed_once_and_kept_for_later_calls(passes):
    tokens, retrieved, _ = make_batch()
    retrieved[:] = retrieved[0, 0, 0]
    model = make_model()
    first = model(tokens, retrieved)
    assert [len(texts) for texts in passes] == [1]
    assert torch.equal(model(tokens, retrieved), first) and len(passes) == 1
    model.extend(tokens, model.new_cache(), retrieved)
    assert len(passes) == 1


@torch.no_grad()
def test_what_is_kept_is_bounded_and_the_oldest_goes_first(passes):
    model = make_model()
    tokens, retrieved, _ = make_batch(num_rows=1, length=2 * CHUNK, num_neighbours=1)
    model(tokens, retrieved)
    of_one = model.retrieval.states.num_bytes // 2
    assert of_one == 2 * DEEP * 2 * CHUNK * 2 * 4 * 8  # keys and values, layers, tokens, heads of keys, features, bytes
    small = make_model(neighbour_cache_gib=2.5 * of_one / (1 << 30))
    passes.clear()
    small(tokens, retrieved)
    other = (retrieved[:, :1] + 1) % VOCABULARY
    small(tokens[:, :CHUNK], other)
    assert small.retrieval.states.num_bytes == 2 * of_one and [len(texts) for texts in passes] == [2, 1]
    small(tokens[:, :CHUNK], retrieved[:, 1:])
    assert len(passes) == 2
    small(tokens[:, :CHUNK], retrieved[:, :1])
    assert len(passes) == 3


@torch.no_grad()
def test_nothing_need_be_kept(passes):
    tokens, retrieved, mask = make_batch()
    model = make_model(neighbour_cache_gib=0.0)
    assert torch.equal(model(tokens, retrieved, mask), model(tokens, retrieved, mask))
    assert len(passes) == 2 and model.retrieval.states.num_bytes == 0


@torch.no_grad()
def test_texts_of_like_length_run_together(passes, monkeypatch):
    monkeypatch.setattr(neighbour_states, "TOKENS_AT_ONCE", 12)
    tokens, retrieved, mask = make_batch()
    wanted = make_model()(tokens, retrieved, mask)
    lengths = [[len(ids) for ids, _ in texts] for texts in passes]
    flat = [length for batch in lengths for length in batch]
    assert flat == sorted(flat) and all(len(batch) * (1 + batch[-1]) <= 12 or len(batch) == 1 for batch in lengths)
    monkeypatch.undo()
    torch.testing.assert_close(make_model()(tokens, retrieved, mask), wanted, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_what_is_kept_is_of_these_weights_and_this_precision():
    tokens, retrieved, mask = make_batch()
    model = make_model(dtype=torch.float32)
    model(tokens, retrieved, mask)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(tokens, retrieved, mask)
    fresh = make_model(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fresh(tokens, retrieved, mask), half)
    exact = make_model()
    torch.testing.assert_close(
        model.double()(tokens, retrieved, mask), exact(tokens, retrieved, mask), rtol=0, atol=1e-4
    )
    before = model(tokens, retrieved, mask)
    model.base.model.layers[1].mlp.up_proj.weight.mul_(2.0)
    assert not torch.allclose(model(tokens, retrieved, mask), before)


@torch.no_grad()
def test_under_autocast_a_frozen_base_is_the_base_in_bfloat16_and_stays_as_it_is(every_family, tmp_path):
    tokens, retrieved, mask = make_batch()
    model = make_model(every_family, dtype=torch.float32)
    before, names = fingerprint(model.base), model.state_dict().keys()
    model.base.save_pretrained(tmp_path)
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)(tokens).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(tokens), wanted)
        on = model(tokens, retrieved, mask)
        assert torch.equal(model.extend(tokens, model.new_cache())[:, 0], wanted[:, 0])
    assert model.state_dict().keys() == names and torch.equal(fingerprint(model.base), before)
    (states,) = {state.dtype for state in model.retrieval.states._kept.values()}
    assert states == torch.bfloat16
    exact, base = model(tokens, retrieved, mask), model(tokens)
    assert (on - exact).abs().mean() < 0.5 * (exact - base).abs().mean()


def test_a_base_that_is_trained_runs_as_it_is_under_autocast():
    tokens, _, _ = make_batch()
    model = make_model(dtype=torch.float32, unfreeze=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.retrieval.states.narrow.of(model.base) is model.base
        model.loss(tokens, tokens).sum().backward()
    assert all(parameter.grad is not None for parameter in model.base.parameters())


def test_maps_are_trained_in_float32_through_the_copy_in_bfloat16():
    tokens, retrieved, mask = make_batch()
    model = make_model("llama, trained", dtype=torch.float32).train()
    for parameter in model.retrieval.parameters():
        parameter.data *= 0.2  # rounding errors grow from layer to layer
    model.loss(tokens, tokens, retrieved, mask).sum().backward()
    wanted = torch.cat([parameter.grad.flatten() for parameter in model.retrieval.parameters()])
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(tokens, tokens, retrieved, mask).sum().backward()
    found = torch.cat([parameter.grad.flatten() for parameter in model.retrieval.parameters()])
    assert found.dtype == torch.float32 and torch.cosine_similarity(found, wanted, dim=0) > 0.95


def test_what_is_kept_can_be_read_in_training():
    tokens, retrieved, mask = make_batch()
    other = make_model(dtype=torch.float32)
    with torch.inference_mode():
        other(tokens, retrieved, mask)
    assert other.retrieval.states.num_bytes
    other.base.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    other.loss(tokens, tokens, retrieved, mask).sum().backward()


def test_a_copy_keeps_nothing():
    tokens, retrieved, mask = make_batch()
    model = make_model()
    wanted = model(tokens, retrieved, mask)
    other = copy.deepcopy(model)
    assert other.retrieval.states.num_bytes == 0 < model.retrieval.states.num_bytes
    assert torch.equal(other(tokens, retrieved, mask), wanted)


# What training computes.


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_nothing_below_the_first_reading_layer_is_kept_for_gradients(kind):
    tokens, retrieved, mask = make_batch()
    model = make_model(f"{kind}, trained", reading_layers=(3, 4)).train()
    kept, seen = [], []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    def remember(module, args, output):
        seen.append(((output if torch.is_tensor(output) else output[0]).requires_grad, len(kept)))

    hooks = [layer.register_forward_hook(remember) for layer in model.blocks]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(tokens, tokens, retrieved, mask).sum().backward()
    of_neighbours, of_text = seen[:-DEEP], seen[-DEEP:]
    assert of_neighbours and all(each == (False, 0) for each in of_neighbours)
    assert of_text[:2] == [(False, 0)] * 2 and all(needed and count for needed, count in of_text[2:])
    found = {name: parameter.grad.clone() for name, parameter in model.retrieval.named_parameters()}
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    model.base.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())
    model.loss(tokens, tokens, retrieved, mask).sum().backward()
    wanted = {name: parameter.grad for name, parameter in model.retrieval.named_parameters()}
    assert all(torch.equal(found[name], wanted[name]) and found[name].any() for name in wanted)


# Options.


@torch.no_grad()
def test_only_the_chosen_layers_read():
    tokens, retrieved, mask = make_batch()
    everywhere = make_model()(tokens, retrieved, mask)
    model = make_model(reading_layers=(3, 4))
    states = model.base(tokens, output_hidden_states=True).hidden_states
    inputs = {}
    for number, layer in enumerate(model.base.model.layers):
        layer.register_forward_pre_hook(lambda module, args, number=number: inputs.update({number: args[0]}))
    assert not torch.allclose(model(tokens, retrieved, mask), everywhere)
    assert all(torch.equal(inputs[number], states[number]) for number in range(3))
    assert not torch.equal(inputs[3], states[3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reading_layers": ()}, r"model\.reading_layers"),
        (
            {"reading_layers": (1, 1)},
            r"model\.reading_layers is \[1, 1\], which names a layer twice.*out for all of them",
        ),
        ({"cca_layers": (2,)}, r'model\.cca_layers belongs to the reader "encoder", and model\.reader is "inherit"'),
        ({"smear": True}, r"model\.smear belongs to the reader"),
        ({"reader": "encoder", "reading_layers": (2,)}, r'model\.reading_layers belongs to the reader "inherit"'),
        ({"reader": "encoder", "neighbour_cache_gib": 2.0}, r"model\.neighbour_cache_gib belongs to the reader"),
        ({"reader": "encoder", "unrelated_offset": 0.2}, r"model\.unrelated_offset belongs to the reader"),
        ({"neighbour_cache_gib": -1.0}, r"model\.neighbour_cache_gib"),
        ({"reader": "encoder", "neighbour_store": "f"}, r"model\.neighbour_store belongs to the reader"),
        ({"neighbour_store": "f", "unfreeze": True}, r"model\.neighbour_store keeps.*model\.unfreeze is true"),
        ({"reader": "encoder", "trained": ("query",)}, r"model\.trained belongs to the reader"),
        ({"trained": ("query", "query")}, r"model\.trained is \['query', 'query'\], which names something twice"),
        ({"trained": ("key",)}, r"model\.trained"),
        ({"trained": ("scale",), "rank": 4}, r'model\.rank belongs.*"query", "answer" or "layers"'),
        ({"reader": "heirloom"}, r"model\.reader"),
    ],
)
def test_options_that_would_change_nothing_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        make_options(**changes)


def test_a_layer_that_the_base_lacks_is_refused():
    with pytest.raises(
        UsageError, match=rf"model\.reading_layers.*names layer {DEEP + 1}.*layers 1 to {DEEP}\. .*all of"
    ):
        make_model(reading_layers=(1, DEEP + 1))


def test_gaps_between_reading_layers_are_noted_once(tmp_path, capsys):
    make_base().save_pretrained(tmp_path)
    for layers in ((2, 3, 4), (2, 4, 5), (5, 4, 2)):
        make_options(base=str(tmp_path), reading_layers=layers).check(sequence_length=8)
    assert capsys.readouterr().err.count("model.reading_layers is [2, 4, 5], with gaps") == 1


def test_fewer_learned_positions_than_a_neighbour_has_tokens_are_refused():
    with pytest.raises(
        UsageError, match=r'model\.reader: "inherit" given, and a neighbour of 8 tokens.*positions for 8'
    ):
        make_model(base=make_base("gpt2", n_positions=8))


def test_rotary_positions_that_change_with_the_length_end_where_they_change():
    base = make_base("phi3", dtype=torch.float64)
    base.config.rope_parameters = base.config.rope_parameters | {
        "rope_type": "longrope",
        "original_max_position_embeddings": 9,
    }
    model = make_model(base=base)
    tokens, _, _ = make_batch()
    with pytest.raises(InvalidShapeError, match=r"13 in a row given; the base has positions for 9"):
        model(tokens)


@pytest.mark.parametrize(("given", "wanted"), [((3, 5), 3), ((None, 5), 5), ((None, [7, 8]), 7), ((None, None), 0)])
def test_a_text_begins_with_a_token_of_the_base(given, wanted):
    config = make_base().config
    config.bos_token_id, config.eos_token_id = given
    assert sink_of(config) == wanted


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "llama, trained"])
def test_a_saved_model_reads_as_before(tmp_path, family):
    tokens, retrieved, mask = make_batch()
    model = make_model(family, dtype=torch.float32, reading_layers=(2, 3))
    model.save_pretrained(tmp_path / "model")
    assert "retroflow" not in (tmp_path / "model" / "base" / "config.json").read_text()
    other = RetrofitModel.from_pretrained(tmp_path / "model")
    assert torch.equal(other(tokens, retrieved, mask), model(tokens, retrieved, mask))


@torch.no_grad()
def test_maps_are_saved_without_their_base_and_refuse_another(tmp_path):
    tokens, retrieved, mask = make_batch()
    base = make_base("llama")
    base.save_pretrained(tmp_path / "base")
    model = make_model("llama, trained", dtype=torch.float32, base=base)
    model.options = replace(model.options, base=str(tmp_path / "base"))
    model.save_without_base(tmp_path / "maps")
    assert not (tmp_path / "maps" / "base").exists()
    sizes = [4 * parameter.numel() for parameter in model.retrieval.parameters()]
    assert (tmp_path / "maps" / "model.safetensors").stat().st_size < sum(sizes) + 120 * len(sizes)
    other = RetrofitModel.from_pretrained(tmp_path / "maps")
    assert torch.equal(other(tokens, retrieved, mask), model(tokens, retrieved, mask))
    base.model.layers[0].mlp.up_proj.weight.mul_(2.0)
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(UsageError, match=r"has other weights.*Give the base they were trained on"):
        RetrofitModel.from_pretrained(tmp_path / "maps")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_reads_as_a_cpu_does_and_is_the_base_without_retrieval(every_family):
    base = make_base(every_family, dtype=torch.float64)
    model = make_model(f"{every_family}, trained", base=base)
    tokens, retrieved, mask = make_batch()
    expected = model(tokens, retrieved, mask)
    tokens, retrieved, mask = (each.cuda() for each in (tokens, retrieved, mask))
    model.cuda()
    assert torch.equal(model(tokens), base(input_ids=tokens).logits)
    # Some families compute their rotary angles in float32.
    torch.testing.assert_close(model(tokens, retrieved, mask).cpu(), expected, rtol=0, atol=1e-6)
