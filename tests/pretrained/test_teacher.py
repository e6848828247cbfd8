"""What a frozen base teaches equals a literal sum over positions and tokens, and only the reading maps learn it."""

import pytest
import torch

from retroflow.data import Batch
from retroflow.pretrained.retrofit import RetrofitModel
from retroflow.pretrained.retrofit_config import RetrofitConfig
from retroflow.pretrained.teacher import Lesson, divergence, taught_loss
from tests.pretrained.bases import CHUNK, VOCABULARY, make_base

pytestmark = pytest.mark.filterwarnings("ignore")

LENGTH, ROWS = 5 * CHUNK, 2


@pytest.fixture(scope="module")
def model():
    options = RetrofitConfig(
        vocabulary_size=VOCABULARY, chunk_length=CHUNK, base="in memory", reader="inherit", rank=2,
        trained=("scale", "query", "answer", "layers"),
    )  # fmt: skip
    made = RetrofitModel(options, make_base("llama", dtype=torch.float64)).double().eval()
    torch.manual_seed(1)
    for parameter in made.retrieval.parameters():
        parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
    return made


@pytest.fixture
def batch():
    torch.manual_seed(2)
    tokens = torch.randint(0, VOCABULARY, (ROWS, LENGTH + 1))
    targets = tokens[:, 1:].clone()
    targets[0, 5:7] = targets[1, -1] = -100
    retrieved = torch.randint(0, VOCABULARY, (ROWS, LENGTH // CHUNK, 2, 2 * CHUNK))
    is_random = torch.tensor([[False, True, False, True, False], [True, False, False, False, True]])
    return Batch(
        tokens[:, :-1], targets, retrieved, torch.ones_like(retrieved, dtype=torch.bool), torch.ones(ROWS), is_random
    )


def literal(model, batch, is_random, chunks, prompts, weight):
    """Both sums, position by position."""
    own = model(batch.tokens, batch.retrieved, batch.retrieved_mask).log_softmax(-1)
    alone = model.base(batch.tokens).logits.log_softmax(-1)
    nats, taught = torch.zeros(()).double(), torch.zeros(()).double()
    for row in range(ROWS):
        for place in range(LENGTH):
            target = int(batch.targets[row, place])
            if target == -100:
                continue
            read = (place + 1) // CHUNK - 1  # the chunk whose neighbours are read
            taken = is_random is not None and read >= 0 and bool(is_random[row, read])
            if taken:
                wanted = alone[row, place]
                taught = taught + (wanted.exp() * (wanted - own[row, place])).sum() / (ROWS * LENGTH)
            else:
                nats = nats - own[row, place, target]
            if not taken and chunks and chunks[row] == (place + 1) // CHUNK:
                inside = place - (chunks[row] * CHUNK - 1)
                prompted = model.base(prompts[row][None]).logits[0].log_softmax(-1)[len(prompts[row]) - CHUNK + inside]
                divergence = (prompted.exp() * (prompted - own[row, place])).sum()
                taught = taught + weight * divergence / (ROWS * CHUNK)
    return nats, taught


@pytest.mark.parametrize(("base_takes", "weight"), [(True, 0.0), (False, 0.7), (True, 0.7)])
def test_it_is_a_literal_sum_and_only_maps_learn(model, batch, base_takes, weight):
    chunks = [3, 2] if weight else []
    prompts = [torch.randint(0, VOCABULARY, (length,)) for length in (9, 14)] if weight else []
    is_random = batch.is_random if base_takes else None
    nats, taught, targets = taught_loss(model, batch.targets, batch, Lesson(is_random, chunks, prompts, weight))
    wanted_nats, wanted_taught = literal(model, batch, is_random, chunks, prompts, weight)
    assert float(nats) == pytest.approx(float(wanted_nats)) and float(taught) == pytest.approx(float(wanted_taught))
    assert int((targets != -100).sum()) == int((batch.targets != -100).sum()) - 12 * base_takes
    weights = list(model.retrieval.parameters())
    found = torch.autograd.grad(nats + taught, weights)
    wanted = torch.autograd.grad(wanted_nats + wanted_taught, weights)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, wanted, strict=True))
    assert any(gradient.abs().max() > 0 for gradient in found)


def test_nothing_diverges_from_itself():
    hidden, output = torch.randn(3, 4), torch.randn(7, 4)
    assert divergence(hidden, hidden, output).abs().max() < 1e-6
    assert divergence(hidden, torch.randn(3, 4), output).min() > 0
