"""A score is what the model's forward pass says of the text, with the same neighbours."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from retroflow.corpus.tokenizer import train_tokenizer
from retroflow.generation import GenerationOptions, generate
from retroflow.generation.rows import aligned_length
from retroflow.generation.scoring import score, score_after, score_each
from tests.generation.small import VARIANTS, VOCABULARY, HashRetriever, LetterTokenizer, make_model, neighbours_of

TEXT = "the notes of a book keep names."


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
@pytest.mark.parametrize("retrieves", [True, False])
@pytest.mark.parametrize("length", [1, 4, 9, len(TEXT)])
def test_it_is_what_forward_gives(variant, retrieves, length):
    model = make_model(variant, **VARIANTS[variant]).eval()
    m, tokenizer = model.config.chunk_length, LetterTokenizer()
    retriever = HashRetriever(m) if retrieves else None
    found = score(model, tokenizer, TEXT[:length], retriever=retriever, num_neighbours=2)
    case = SimpleNamespace(model=model, retriever=retriever, options=GenerationOptions(num_neighbours=2), step=m)
    tokens = tokenizer.encode(TEXT[:length]).ids.tolist()
    retrieved, mask = neighbours_of(case, tokens)
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), retrieved, mask)[0]
    expected = F.cross_entropy(logits[:-1].float(), torch.tensor(tokens[1:], dtype=torch.int64), reduction="none")
    assert found.nats == pytest.approx(expected.tolist(), abs=1e-5)
    assert found.tokens == tuple(tokens) and found.bytes == length
    assert found.bits_per_byte == pytest.approx(sum(found.nats) / math.log(2) / length)
    assert len(found.retrievals) == (length // m if retrieves and model.config.cca_layers else len(found.retrievals))


@pytest.mark.parametrize("retrieves", [True, False])
@pytest.mark.parametrize("step", [4, 3])
@pytest.mark.parametrize("length", [1, 4, 9])
def test_a_text_after_a_context_is_aligned_as_a_generation_is(retrieves, step, length):
    model, tokenizer, text = make_model().eval(), LetterTokenizer(), TEXT[length:]
    retriever = HashRetriever(4) if retrieves else None
    found = score(model, tokenizer, text, context=TEXT[:length], retriever=retriever, retrieval_step=step)
    case = SimpleNamespace(model=model, retriever=retriever, options=GenerationOptions(num_neighbours=2), step=step)
    tokens = tokenizer.encode(TEXT).ids.tolist()
    padding = aligned_length(length, 4, step) - length
    retrieved, mask = neighbours_of(case, [None] * padding + tokens)
    with torch.no_grad():
        row = torch.tensor([[0] * padding + tokens])
        logits = model(row, retrieved, mask, padding=torch.tensor([padding]), retrieval_step=step)[0, padding:]
    expected = F.cross_entropy(logits[:-1].float(), torch.tensor(tokens[1:]), reduction="none")[length - 1 :]
    assert found.nats == pytest.approx(expected.tolist(), abs=1e-5)
    assert found.tokens == tuple(tokens[length:]) and found.bytes == len(text)
    if retrieves:
        assert length in [retrieval.end for retrieval in found.retrievals]


def test_a_token_that_begins_in_the_context_is_scored():
    tokenizer = train_tokenizer(["the harbour keeps the harbour"] * 9, 280)
    joined = next(word for word in (" keeps", " the", " harbour") if len(tokenizer.encode(word).ids) == 1)
    model = make_model(vocabulary_size=tokenizer.vocabulary_size)
    found = score(model, tokenizer, joined[1:], context="the ")
    assert found.tokens == tuple(tokenizer.encode(joined).ids.tolist()) and len(found.nats) == 1


@pytest.mark.parametrize("retrieves", [True, False])
def test_texts_for_the_same_place_are_scored_together_as_they_are_alone(retrieves):
    model, tokenizer = make_model().eval(), LetterTokenizer()
    retriever = HashRetriever(4) if retrieves else None
    texts, ways = [TEXT[9:], "of a", "in a book of names that keep notes."], {"num_neighbours": 2, "retrieval_step": 3}
    together = score_each(model, tokenizer, texts, context=TEXT[:9], retriever=retriever, **ways)
    for text, found in zip(texts, together, strict=True):
        alone = score(model, tokenizer, text, context=TEXT[:9], retriever=retriever, **ways)
        assert found.nats == pytest.approx(alone.nats, abs=1e-9)
        assert (found.tokens, found.bytes, found.retrievals) == (alone.tokens, alone.bytes, alone.retrievals)


@pytest.mark.parametrize("retrieves", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("step", [4, 3])
def test_contexts_of_different_lengths_are_scored_together_as_they_are_alone(retrieves, batch_size, step):
    model, tokenizer = make_model().eval(), LetterTokenizer()
    retriever = HashRetriever(4) if retrieves else None
    texts = [(TEXT[:14], TEXT[14:25]), (TEXT[:3], "e notes"), (TEXT[:14], "k"), (TEXT[:5], TEXT[5:])]
    pairs = [tuple(tokenizer.encode(part).ids.tolist() for part in each) for each in texts]
    options, finished = GenerationOptions(batch_size=batch_size, retrieval_step=step), []
    found = score_after(model, tokenizer, pairs, retriever=retriever, options=options, advance=finished.append)
    assert sum(finished) == len(pairs)
    for (context, text), (_, tokens), each in zip(texts, pairs, found, strict=True):
        alone = score(model, tokenizer, text, context=context, retriever=retriever, retrieval_step=step)
        assert each.tokens == tuple(tokens) == alone.tokens and each.bytes == alone.bytes
        assert each.nats == pytest.approx(alone.nats, abs=1e-9)
        assert each.likeliest == alone.likeliest and each.retrievals == alone.retrievals


def test_the_likeliest_tokens_are_those_that_generation_writes():
    model, tokenizer, retriever = make_model(3).eval(), LetterTokenizer(), HashRetriever(4)
    options = GenerationOptions(max_new_tokens=6, stop_at_end_of_text=False)
    (written,) = generate(model, tokenizer, [TEXT[:9]], retriever=retriever, options=options)
    prompt = tokenizer.encode(TEXT[:9]).ids.tolist()
    other = [*written.tokens[:3], (written.tokens[3] + 1) % VOCABULARY]
    pairs = [(prompt, written.tokens), (prompt, other)]
    same, differs = score_after(model, tokenizer, pairs, retriever=retriever, options=options)
    assert same.likeliest == (True,) * 6 and differs.likeliest == (True, True, True, False)
