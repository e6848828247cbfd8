"""A score is what the model's forward pass says of the text, with the same neighbours."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from retroflow.generation import GenerationOptions
from retroflow.generation.scoring import score
from tests.generation.small import VARIANTS, HashRetriever, LetterTokenizer, make_model, neighbours_of

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
