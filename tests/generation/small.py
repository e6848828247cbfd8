"""Small models, a tokenizer of letters, and a retriever whose answer is a function of the query."""

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from retroflow.corpus.tokenizer import Encoded
from retroflow.generation import GenerationOptions, Retrieved, Source
from retroflow.generation.rows import aligned_length
from retroflow.generation.sampling import Sampler
from retroflow.model.config import RetroConfig
from retroflow.model.windows import num_windows

LETTERS = "abcdefghijklmnopqrstuvwxyz ."
END_OF_TEXT = len(LETTERS)
VOCABULARY = END_OF_TEXT + 1

SMALL = RetroConfig(
    vocabulary_size=VOCABULARY, chunk_length=4, width=8, num_layers=2, num_heads=2, head_width=4, cca_layers=(2,),
    encoder_width=8, encoder_layers=1, encoder_heads=1, encoder_cross_attention_layers=(1,), tie_embeddings=False,
)  # fmt: skip
AIDS = {
    "smear": True,
    "next_token_values": True,
    "share_encoder_embeddings": True,
    "copy_initialisation": True,
    "cca_scale": 5.0,
}
VARIANTS = (
    {},
    AIDS,
    AIDS | {"cca_positions": False},
    {"cca_layers": (1, 2)},
    {"encoder_layers": 0, "encoder_cross_attention_layers": ()},
    {"num_layers": 3, "cca_layers": (2, 3), "chunk_length": 3, "tie_embeddings": True},
    {"num_layers": 1, "cca_layers": (1,), "chunk_length": 5, "dropout": 0.5},
    {"cca_layers": (), "encoder_cross_attention_layers": ()},
)


class LetterTokenizer:
    """Every letter is a token."""

    vocabulary_size = VOCABULARY
    end_of_text = END_OF_TEXT

    def encode(self, text):
        ids = np.array([LETTERS.index(letter) for letter in text], dtype=np.int32)
        return Encoded(ids, np.arange(len(ids)), len(ids))

    def decode(self, ids):
        return "".join((*LETTERS, "<|end|>")[token] for token in ids)


class HashRetriever:
    """Neighbours, holes among them and sometimes none at all, drawn by the hash of the query; counts what it is asked."""

    def __init__(self, chunk_length):
        self.retrieved_length = 2 * chunk_length
        self.asked = []
        self.calls = 0

    def retrieve(self, queries, num_neighbours):
        self.calls += 1
        self.asked += [list(query) for query in queries]
        return self.answer(queries, num_neighbours)

    def answer(self, queries, num_neighbours):
        tokens = np.full((len(queries), num_neighbours, self.retrieved_length), END_OF_TEXT)
        mask = np.zeros(tokens.shape, dtype=bool)
        sources = []
        for row, query in enumerate(queries):
            digest = hashlib.sha256(bytes(token % 256 for token in query)).digest()
            draw = np.random.default_rng(list(digest[:8]))
            lengths = draw.integers(0, self.retrieved_length + 1, size=num_neighbours)
            if draw.random() < 0.15:
                lengths[:] = 0
            mask[row] = np.arange(self.retrieved_length) < lengths[:, None]
            drawn = draw.integers(0, VOCABULARY, size=tokens.shape[1:])
            tokens[row] = np.where(mask[row], drawn, END_OF_TEXT)
            sources.append(
                tuple(Source(f"d{place}", "", "", "text", -float(place), place) for place in range(num_neighbours))
            )
        return Retrieved(tokens, mask, sources)


@dataclass(frozen=True)
class Case:
    """One random thing to generate."""

    model: torch.nn.Module
    prompts: list
    retriever: HashRetriever | None
    options: GenerationOptions

    @property
    def step(self):
        return self.options.step_for(self.model.config.chunk_length)


def make_model(seed=0, *, double=True, **changes):
    torch.manual_seed(seed)
    model = dataclasses.replace(SMALL, **changes).build()
    with torch.no_grad():
        for parameter in model.parameters():  # larger weights than at the start: every path carries a visible signal
            parameter.add_(torch.randn_like(parameter) * 0.4)
    return model.double() if double else model


def draw_case(seed):
    """Model, ragged prompts and options, all drawn from one seed."""
    draw = np.random.default_rng(seed)
    model = make_model(seed, **VARIANTS[draw.integers(len(VARIANTS))])
    m = model.config.chunk_length
    prompts = [
        draw.integers(0, VOCABULARY, size=draw.integers(1, 3 * m + 2)).tolist() for _ in range(draw.integers(1, 5))
    ]
    sampled = [
        {},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8, "repetition_penalty": 1.4},
    ][draw.integers(4)]
    options = GenerationOptions(
        max_new_tokens=int(draw.integers(1, 2 * m + 3)),
        num_neighbours=int(draw.integers(1, 4)),
        retrieval_step=[None, *range(1, m + 1)][draw.integers(m + 1)],
        align=bool(draw.random() < 0.75),
        stop_at_end_of_text=bool(draw.random() < 0.5),
        seed=int(draw.integers(1000)),
        batch_size=int(draw.integers(1, 5)),
        **sampled,
    )
    return Case(model, prompts, HashRetriever(m) if draw.random() < 0.75 else None, options)


@torch.no_grad()
def generate_without_cache(case, number):
    """The tokens of one prompt alone: the whole sequence through `forward` for every new token."""
    model, options, step, m = case.model.eval(), case.options, case.step, case.model.config.chunk_length
    tokens = list(case.prompts[number])
    padding = aligned_length(len(tokens), m, step) - len(tokens) if options.align else 0
    sampler = Sampler(
        options, [tokens], [options.seed + number], vocabulary_size=VOCABULARY, device=torch.device("cpu")
    )
    new = []
    while len(new) < options.max_new_tokens and not (options.stop_at_end_of_text and new[-1:] == [END_OF_TEXT]):
        known = [None] * padding + tokens + new
        row = torch.tensor([[END_OF_TEXT if token is None else token for token in known]])
        retrieved, mask = neighbours_of(case, known)
        logits = model(row, retrieved, mask, padding=torch.tensor([padding]), retrieval_step=step)
        new.append(int(sampler.choose(logits[:, -1])))
    return new


def windows_of(known, m, step):
    """The tokens, None for padding, of every window that is complete and not all padding."""
    windows = [known[m + w * step - m : m + w * step] for w in range(num_windows(len(known), m, step))]
    return [[token for token in window if token is not None] for window in windows]


def neighbours_of(case, known):
    """Retrieved tokens and mask [1, w, k, r] of a row, None for padding; None twice without retrieval or windows."""
    m, k = case.model.config.chunk_length, case.options.num_neighbours
    windows = windows_of(known, m, case.step)
    if case.retriever is None or not windows:
        return None, None
    retrieved = torch.full((1, len(windows), k, 2 * m), END_OF_TEXT)
    mask = torch.zeros(retrieved.shape, dtype=torch.bool)
    for place, window in enumerate(windows):
        if window:
            answer = case.retriever.answer([window], k)
            retrieved[0, place] = torch.from_numpy(answer.tokens[0])
            mask[0, place] = torch.from_numpy(answer.mask[0])
    return retrieved, mask
