"""Random small models and inputs, and the two ways to run them: on whole sequences, and through a cache."""

import dataclasses
import random

import torch
from hypothesis import strategies as st

from retroflow.model.config import RetroConfig
from retroflow.model.retro import Retro
from retroflow.model.windows import num_windows

VOCABULARY = 29
SMALL = RetroConfig(
    vocabulary_size=VOCABULARY, chunk_length=4, width=16, num_layers=4, num_heads=2, head_width=6, cca_layers=(2, 4),
    encoder_width=12, encoder_layers=2, encoder_heads=2, encoder_cross_attention_layers=(1,),
)  # fmt: skip
READING_AIDS = {
    "smear": True,
    "next_token_values": True,
    "share_encoder_embeddings": True,
    "copy_initialisation": True,
    "cca_scale": 5.0,
}
VARIANTS = {
    "paper": {"positions": "relative"},
    "rotary": {},
    "aids": READING_AIDS,
    "aids_relative": READING_AIDS | {"positions": "relative"},
    "aids_no_positions_one_head": READING_AIDS | {"cca_positions": False, "cca_heads": 1},
    "no_encoder_layers": {"encoder_layers": 0, "encoder_cross_attention_layers": ()},
    "untied_same_width": {"tie_embeddings": False, "encoder_width": 16, "share_encoder_embeddings": True},
    "single_layer": {"num_layers": 1, "cca_layers": (1,)},
    "neighbour": {"retrieved_part": "neighbour"},
    "continuation": {"retrieved_part": "continuation", "positions": "relative"},
}


def make(seed=0, **changes) -> Retro:
    torch.manual_seed(seed)
    model = dataclasses.replace(SMALL, **changes).build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # larger weights than at the start: every path carries a visible signal
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def inputs(model, *, rows=2, length=14, neighbours=2, seed=0, hole=0.25, step=None):
    generator = torch.Generator().manual_seed(seed)
    m = model.config.chunk_length
    tokens = torch.randint(VOCABULARY, (rows, length), generator=generator)
    shape = (rows, num_windows(length, m, step or m), neighbours, 2 * m)
    retrieved = torch.randint(VOCABULARY, shape, generator=generator)
    mask = torch.rand(retrieved.shape, generator=generator) >= hole
    return tokens, retrieved, mask


def changed(tokens):
    return (tokens + 1) % VOCABULARY


@st.composite
def configurations(draw):
    """Options for `make`, every field of RetroConfig among them (test_retro.py checks that none is left out)."""
    layers, encoder_layers = draw(st.integers(1, 4)), draw(st.integers(0, 2))
    shared, chunk_length = draw(st.booleans()), draw(st.integers(1, 5))
    next_token_values = draw(st.booleans())
    # A part of one token has no next token, so it cannot be read with next_token_values.
    parts = ["both", "neighbour", "continuation"] if chunk_length > 1 or not next_token_values else ["both"]
    return {
        "vocabulary_size": VOCABULARY,
        "chunk_length": chunk_length,
        "width": draw(st.sampled_from([8, 12])),
        "num_layers": layers,
        "num_heads": draw(st.sampled_from([1, 2])),
        "head_width": draw(st.sampled_from([0, 4, 6])),
        "feed_forward_width": draw(st.sampled_from([0, 10])),
        "cca_layers": tuple(sorted(draw(st.sets(st.integers(1, layers), min_size=1)))),
        "cca_heads": draw(st.sampled_from([0, 1, 2])),
        "positions": draw(st.sampled_from(["rotary", "relative"])),
        "cca_positions": draw(st.booleans()),
        "encoder_width": draw(st.sampled_from([8, 12])),
        "encoder_layers": encoder_layers,
        "encoder_heads": draw(st.sampled_from([1, 2])),
        "encoder_head_width": draw(st.sampled_from([0, 4])),
        "encoder_feed_forward_width": draw(st.sampled_from([0, 10])),
        "encoder_cross_attention_layers": tuple(draw(st.sets(st.integers(1, encoder_layers))))
        if encoder_layers
        else (),
        "retrieved_part": draw(st.sampled_from(parts)),
        "tie_embeddings": draw(st.booleans()),
        "share_encoder_embeddings": shared,
        "dropout": draw(st.sampled_from([0.0, 0.5])),  # without effect on a model that predicts
        "rotary_theta": draw(st.sampled_from([10000.0, 100.0])),
        "smear": draw(st.booleans()),
        "next_token_values": next_token_values,
        "copy_initialisation": shared and draw(st.booleans()),
        "cca_scale": draw(st.sampled_from([0.0, 5.0])),
    }


@dataclasses.dataclass(repr=False)
class Case:
    """A model with inputs: tokens int64 [b, n], retrieved [b, W, k, r] and its mask, padding [b] or None, the step."""

    model: Retro
    tokens: torch.Tensor
    retrieved: torch.Tensor
    mask: torch.Tensor
    padding: torch.Tensor | None
    step: int
    random: random.Random

    def __repr__(self):
        padding = None if self.padding is None else self.padding.tolist()
        return f"Case({self.model.config}, tokens {list(self.tokens.shape)}, padding {padding}, step {self.step})"

    @property
    def chunk_length(self):
        return self.model.config.chunk_length

    @property
    def real(self):
        """bool [b, n], False at padding, whose logits mean nothing."""
        paddings = torch.zeros(len(self.tokens), dtype=torch.int64) if self.padding is None else self.padding
        return torch.arange(self.tokens.shape[1]) >= paddings[:, None]

    def window_end(self, window):
        return self.chunk_length + window * self.step

    def cuts(self):
        """Random lengths of calls that add up to n."""
        lengths, left = [], self.tokens.shape[1]
        while left:
            lengths.append(min(left, self.random.choice([1, 1, 2, self.chunk_length, left])))
            left -= lengths[-1]
        return lengths

    def whole(self, **changes):
        """Logits of the forward pass."""
        c = dataclasses.replace(self, **changes)
        with torch.no_grad():
            return c.model(c.tokens, c.retrieved, c.mask, padding=c.padding, retrieval_step=c.step)

    def cached(self, lengths=None, **changes):
        """Logits of calls of `extend` with these lengths."""
        c = dataclasses.replace(self, **changes)
        cache = c.model.new_cache(padding=c.padding, retrieval_step=c.step)
        return c.advance(cache, c.cuts() if lengths is None else lengths)

    def advance(self, cache, lengths):
        """Give the next tokens to a cache that may have seen some already."""
        out, m = [], self.chunk_length
        for length in lengths:
            part = slice(cache.length, cache.length + length)
            first = num_windows(cache.length, m, self.step)
            windows = slice(first, first + cache.num_new_windows(length))
            if self.retrieved is None:
                out.append(self.model.extend(self.tokens[:, part], cache))
            else:
                found = self.retrieved[:, windows], self.mask[:, windows]
                out.append(self.model.extend(self.tokens[:, part], cache, *found))
        return torch.cat(out, dim=1)


@st.composite
def cases(draw, *, rows=None, padded=None, paper_step=False, max_chunks=3):
    options, seed = draw(configurations()), draw(st.integers(0, 10_000))
    m = options["chunk_length"]
    step = m if paper_step else draw(st.integers(1, m))
    length = draw(st.integers(1, max_chunks * m + 2))
    rows = rows or draw(st.integers(1, 3))
    model = make(seed, **options)
    hole = draw(st.sampled_from([0.0, 0.25, 0.6]))
    tokens, retrieved, mask = inputs(
        model, rows=rows, length=length, neighbours=draw(st.integers(1, 2)), seed=seed, hole=hole, step=step
    )
    padding = None
    if draw(st.booleans()) if padded is None else padded:
        padding = torch.tensor(draw(st.lists(st.integers(0, length - 1), min_size=rows, max_size=rows)))
    return Case(model, tokens, retrieved, mask, padding, step, random.Random(seed))


def settings_for(examples):
    from hypothesis import HealthCheck, settings

    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
