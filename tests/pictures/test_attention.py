"""The weights that the inspector shows are those by which the model mixes values."""

import numpy as np
import pytest
import torch

import retroflow.pretrained.joint_attention as joint
from retroflow.data import Batch
from retroflow.model.config import RetroConfig
from retroflow.model.retro import Retro
from retroflow.pictures.attention import watched
from tests.pretrained.bases import CHUNK, VOCABULARY
from tests.pretrained.test_inherited import make_model


def batch_of(chunk, windows, k=2, vocabulary=VOCABULARY, length=None):
    generator = torch.Generator().manual_seed(3)
    length = length or windows * chunk
    tokens = torch.randint(vocabulary, (1, length), generator=generator)
    retrieved = torch.randint(vocabulary, (1, windows, k, 2 * chunk), generator=generator)
    mask = torch.ones(retrieved.shape, dtype=torch.bool)
    mask[0, 0, 1, chunk + 1 :] = False  # a continuation that ends early
    mask[0, 1, 1] = False  # a neighbour that was not found
    return Batch(tokens, tokens, retrieved, mask, torch.zeros(1))


@pytest.mark.parametrize("shifted", [False, True])
def test_cross_attention_adds_up_to_one_and_ignores_what_is_masked(shifted) -> None:
    config = RetroConfig(
        vocabulary_size=VOCABULARY, chunk_length=4, width=16, num_layers=3, num_heads=2, head_width=8, cca_layers=(2, 3),
        encoder_width=8, encoder_layers=1, encoder_heads=1, next_token_values=shifted, cca_scale=3.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model, batch = Retro(config).eval(), batch_of(4, 3)
    with watched(model, batch, 4) as found, torch.no_grad():
        plain = model(batch.tokens, batch.retrieved, batch.retrieved_mask)
    with torch.no_grad():
        assert torch.equal(plain, model(batch.tokens, batch.retrieved, batch.retrieved_mask))  # looking changes nothing
    assert found.adds_up_to_one and found.read[2] == [(2, 0), (2, 1)]
    assert sorted(found.weights) == list(range(3, 12))  # positions from the end of the first chunk on
    for position, weights in found.weights.items():
        assert weights.sum() == pytest.approx(1.0, abs=1e-5)
        real = batch.retrieved_mask[0, (position + 1) // 4 - 1].numpy()
        assert not weights[~real].any()
        if shifted:  # the first token of a neighbour is nobody's next token
            assert not weights[:, 0].any()


@pytest.mark.parametrize(("step", "lookups"), [(CHUNK, 1), (2, 3)])
@pytest.mark.parametrize("trained", [(), ("scale",)])
def test_joint_attention_is_the_share_of_the_softmax(step, lookups, trained) -> None:
    """One reading layer whose values are all ones for neighbours and zero for own text outputs their share."""
    model = make_model("llama", lookups_read=lookups, trained=trained, reading_layers=(2,)).eval()
    windows = (4 * CHUNK - CHUNK) // step + 1
    batch = batch_of(CHUNK, windows, length=4 * CHUNK)
    mixed = {}

    def attend(query, key, value, mask, dropout, scaling):
        num_own = value.shape[2] - mixed["theirs"]
        share = torch.zeros_like(value)
        share[:, :, num_own:] = 1.0
        mixed.setdefault("shares", []).append(original(query, key, share, mask, 0.0, scaling)[..., 0].mean(1))
        return original(query, key, value, mask, dropout, scaling)

    original = joint._attend
    weights_of = joint.WindowNeighbours.keys_and_values

    def counted(self, place):
        keys, values = weights_of(self, place)
        mixed["theirs"] = keys.shape[2]
        return keys, values

    with pytest.MonkeyPatch.context() as patch, watched(model, batch, step) as found, torch.no_grad():
        patch.setattr(joint, "_attend", attend)
        patch.setattr(joint.WindowNeighbours, "keys_and_values", counted)
        mixed["theirs"] = 0
        model(batch.tokens, batch.retrieved, batch.retrieved_mask, retrieval_step=step)
    shares = torch.cat([each[0] for each in mixed["shares"]]).numpy()[CHUNK - 1 :]
    totals = [found.weights[position].sum() for position in sorted(found.weights)]
    assert len(totals) == 3 * CHUNK + 1 and 0 < min(totals) and max(totals) < 1
    np.testing.assert_allclose(totals, shares, atol=1e-5)
    if lookups > 1:
        assert found.read[-1][-1] == (windows - 1, 1) and len(found.read[-1]) == lookups * 2
    assert model.retrieval.watch is None


def test_a_model_of_somebody_else_shows_no_attention() -> None:
    batch = batch_of(4, 2)
    with watched(torch.nn.Linear(2, 2), batch, 4) as found:
        pass
    assert not found.weights and not found.averaged
