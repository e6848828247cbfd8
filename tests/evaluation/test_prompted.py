"""In-context retrieval equals the published protocol of Ram et al., token by token, however it is batched."""

import numpy as np
import pytest
import torch

from retroflow.data import Batch
from retroflow.distributed.ranks import ALONE
from retroflow.evaluation import prompted
from retroflow.evaluation.measuring import token_losses
from retroflow.evaluation.prompted import Prompting, prompted_losses, ram
from retroflow.planning.options import TrainerOptions
from retroflow.planning.placement import place
from retroflow.pretrained.retrofit import RetrofitModel
from retroflow.pretrained.retrofit_config import RetrofitConfig
from tests.pretrained.bases import CHUNK, VOCABULARY, make_base
from tests.training.jobs import tiny_config

pytestmark = pytest.mark.filterwarnings("ignore")

WINDOW, PASSAGE, RANK = 24, 2 * CHUNK, 5
PLACE, NARROW = (
    place(TrainerOptions(max_steps=1, batch_size=1, precision=precision, device="cpu"), ALONE)
    for precision in ("fp32", "bf16")
)


def make_model(family="llama"):
    options = RetrofitConfig(vocabulary_size=VOCABULARY, chunk_length=CHUNK, base="in memory", reader="inherit")
    return RetrofitModel(options, make_base(family)).eval()


def make_texts(count, length, windows, candidates, *, seed=0):
    """Texts of length + 1 tokens, and for every window of each its passages, some shorter and some missing."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randint(VOCABULARY, (count, length + 1), generator=generator)
    retrieved = torch.randint(VOCABULARY, (count, windows, candidates, PASSAGE), generator=generator)
    lengths = torch.randint(3, PASSAGE + 1, (count, windows, candidates, 1), generator=generator)
    lengths[:, 1] = 0
    return texts, retrieved, torch.arange(PASSAGE) < lengths


def batch_of(texts, retrieved, mask):
    return Batch(texts[:, :-1], texts[:, 1:].contiguous(), retrieved, mask, torch.ones(len(texts), dtype=torch.int64))


@torch.no_grad()
def published(model, text, passages_of_step, *, stride, rerank):
    """Ram et al.'s evaluation of one text, one step after the other; nats of every token but the first."""
    nats, done, number = [], 0, 0
    while done < len(text):
        begin, end = number * stride, min(number * stride + WINDOW, len(text))
        window = text[begin:end]
        passages = passages_of_step(number) if number else []
        fresh = end - done
        scored = []
        for passage in passages if rerank else passages[:1]:
            inputs = passage + window[len(passage) :]
            assert len(inputs) == len(window)
            scored.append(model.base(input_ids=torch.tensor([inputs])).logits[0].double().log_softmax(-1))
        if not scored:
            scored = [model.base(input_ids=torch.tensor([window])).logits[0].double().log_softmax(-1)]
        places = range(max(len(window) - fresh, 1), len(window))
        ranks = range(len(window) - fresh - RANK, len(window) - fresh)
        best = min(scored, key=lambda each: -sum(float(each[at - 1, window[at]]) for at in ranks if len(scored) > 1))
        nats += [-float(best[at - 1, window[at]]) for at in places]
        done, number = end, number + 1
    return nats


def real_passages(retrieved, mask):
    return [row[is_real].tolist() for row, is_real in zip(retrieved, mask, strict=True) if is_real.any()]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("rerank", [False, True])
@pytest.mark.parametrize(("stride", "length"), [(3, 46), (4, 45), (7, 41)])  # the last step is shorter in two of them
def test_it_equals_the_published_protocol_token_by_token(family, rerank, stride, length):
    windows = 1 + (length - WINDOW) // stride
    texts, retrieved, mask = make_texts(2, length, windows, 3)
    model = make_model(family)
    protocol = ram(WINDOW, step=stride, first=WINDOW, candidates=3 if rerank else 1, rank_tokens=RANK)
    found = prompted_losses(model, PLACE, protocol)(batch_of(texts, retrieved, mask))
    for row, text in enumerate(texts.tolist()):
        wanted = published(
            model,
            text,
            lambda step, row=row: real_passages(retrieved[row, step - 1], mask[row, step - 1]),
            stride=stride,
            rerank=rerank,
        )
        np.testing.assert_allclose(found[row], wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "prompting",
    [
        Prompting(),
        Prompting(passages=1),
        ram(9, step=3),
        Prompting(step=2),
        ram(16, step=2, candidates=3),
        ram(30, step=2, candidates=3),
    ],
)
def test_nothing_depends_on_what_is_computed_together(monkeypatch, prompting):
    step = prompting.step or CHUNK
    texts, retrieved, mask = make_texts(3, 20, (20 - CHUNK) // step + 1, 3)
    model, batch = make_model(), batch_of(texts, retrieved, mask)
    together = prompted_losses(model, PLACE, prompting)(batch)
    monkeypatch.setattr(prompted, "TOKENS_AT_ONCE", 1)
    one_by_one = torch.cat([prompted_losses(model, PLACE, prompting)(batch.rows(row, row + 1)) for row in range(3)])
    assert torch.allclose(together, one_by_one, rtol=0, atol=2e-5)


def test_without_passages_it_is_the_model_itself():
    texts, retrieved, mask = make_texts(2, 20, 9, 2)
    batch = batch_of(texts, retrieved, torch.zeros_like(mask))
    batch.targets[:, 7:9] = -100
    model = make_model()
    plain = token_losses(model, PLACE)(batch.without_retrieval())
    for prompting in (Prompting(step=2), ram(99, step=2, candidates=3)):
        assert torch.allclose(prompted_losses(model, PLACE, prompting)(batch), plain, rtol=0, atol=2e-5)


def test_a_model_trained_here_has_prompts_too():
    torch.manual_seed(0)
    model = tiny_config(vocabulary_size=VOCABULARY).build().eval()
    texts, retrieved, mask = make_texts(2, 20, 5, 2)
    batch = batch_of(texts, retrieved, mask)
    found = prompted_losses(model, PLACE, Prompting())(batch)
    row = torch.cat([retrieved[0, 2][mask[0, 2]], texts[0, :15]])[None]
    logits = model(row)[0, -4:].log_softmax(-1)
    assert torch.allclose(found[0, 11:15], -logits.gather(1, texts[0, 12:16, None])[:, 0], rtol=0, atol=1e-4)
