"""kNN-LM equals a brute-force one in float64, token by token, and is never tuned on what it is measured on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from retroflow.data import SequenceDataset
from retroflow.errors import UsageError
from retroflow.evaluation import knn_lm
from retroflow.evaluation.knn_lm import (
    UNTUNED,
    WEIGHTS,
    KnnOptions,
    Mixture,
    build_datastore,
    half_of_positions,
    halves,
    knn_losses,
    sequences_to_use,
    tune,
)
from retroflow.evaluation.measuring import token_losses
from tests.evaluation.test_prompted import NARROW, PLACE, make_model
from tests.pretrained.bases import FAMILIES
from tests.training.jobs import tiny_config, tiny_splits

pytestmark = pytest.mark.filterwarnings("ignore")

NOBODY = np.empty(0, dtype=np.int64)
MIXTURE = Mixture(0.3, 2.0)


def sequences_of(splits):
    return SequenceDataset(splits.train_chunks, sequence_chunks=splits.sequence_chunks)


def batch_of(splits, size=4):
    return next(splits.validation().in_order(size))


def small(model, splits, **options):
    return build_datastore(model, PLACE, sequences_of(splits), KnnOptions(**options), excluded=NOBODY)


@torch.no_grad()
def states_of(model, tokens):
    """Logits float64 [n, v], and the input of the last layer's feed-forward part float64 [n, d], of the base alone."""
    seen = []
    layer = model.base.model.layers[-1].post_attention_layernorm
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    logits = model.base(input_ids=tokens[None]).logits[0]
    hook.remove()
    return logits.double(), seen[0].double()


def test_it_equals_brute_force_in_float64():
    model, splits = make_model(), tiny_splits()
    keys, values = [], []
    for batch in sequences_of(splits).in_order(1):
        _, states = states_of(model, batch.tokens[0])
        keys += [state.half().double() for state, value in zip(states, batch.targets[0], strict=True) if value >= 0]
        values += [int(value) for value in batch.targets[0] if value >= 0]
    batch, k = batch_of(splits, 2), 7
    found = knn_losses(model, PLACE, small(model, splits, k=k), MIXTURE)(batch)[0]
    for row in range(2):
        logits, states = states_of(model, batch.tokens[row])
        for place, target in enumerate(batch.targets[row].tolist()):
            if target < 0:
                assert found[row, place] == 0
                continue
            distances = [float((states[place] - key).square().sum()) for key in keys]
            nearest = sorted(range(len(keys)), key=distances.__getitem__)[:k]
            weights = [np.exp(-distances[key] / MIXTURE.temperature) for key in nearest]
            share = sum(weight for key, weight in zip(nearest, weights, strict=True) if values[key] == target)
            alone = float(logits[place].softmax(-1)[target])
            wanted = -np.log(0.7 * alone + 0.3 * share / sum(weights))
            assert float(found[row, place]) == pytest.approx(wanted, abs=1e-4)


def test_nothing_depends_on_the_batch_or_on_who_computes_it():
    model, splits = make_model(), tiny_splits()
    losses = knn_losses(model, PLACE, small(model, splits, k=20), MIXTURE)
    other = knn_losses(model, PLACE, small(model, splits, k=20, batch_size=1), MIXTURE)
    batch = batch_of(splits)
    one_by_one = torch.cat([other(batch.rows(row, row + 1))[0] for row in range(4)])
    assert torch.allclose(losses(batch)[0], one_by_one, rtol=0, atol=1e-4)


def test_a_model_trained_here_has_states_too():
    torch.manual_seed(0)
    model, splits = tiny_config().build().eval(), tiny_splits()
    batch = batch_of(splits)
    off = token_losses(model, PLACE)(batch)
    mixed = knn_losses(model, PLACE, small(model, splits), Mixture(1e-9, 1.0))(batch)[0]
    assert torch.allclose(mixed, off, rtol=0, atol=1e-4)
    assert not torch.allclose(knn_losses(model, PLACE, small(model, splits), MIXTURE)(batch)[0], off, atol=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_its_states(family):
    model, splits = make_model(family), tiny_splits(4)
    datastore = small(model, splits, k=3)
    assert datastore.dimension == 16 and datastore.share == 1.0
    assert knn_losses(model, PLACE, datastore, MIXTURE)(batch_of(splits))[0].isfinite().all()


def test_values_are_no_tokens_of_the_evaluated_documents():
    model, splits = make_model(), tiny_splits()
    sequences = sequences_of(splits)
    own = int(splits.train_chunks.document_ids[7])
    lengths = splits.train_chunks.lengths[splits.train_chunks.document_ids == own]
    all_of_it = build_datastore(model, PLACE, sequences, KnnOptions(), excluded=NOBODY)
    without = build_datastore(model, PLACE, sequences, KnnOptions(), excluded=np.array([own]))
    assert len(all_of_it.values) - len(without.values) == np.minimum(lengths + 1, 4).sum()
    with pytest.raises(UsageError, match="all documents of the database occur in the evaluated text"):
        build_datastore(
            model, PLACE, sequences, KnnOptions(), excluded=np.unique(np.asarray(splits.train_chunks.document_ids))
        )


def test_of_a_large_database_sequences_are_drawn():
    sequences = sequences_of(tiny_splits())
    options = KnnOptions(most_tokens=3 * 12)
    used = [sequences_to_use(sequences, replace(options, seed=seed)).tolist() for seed in (0, 0, 1)]
    assert used[0] == used[1] != used[2] and len(set(used[0])) == 3
    assert len(sequences_to_use(sequences, KnnOptions())) == len(sequences)
    datastore = build_datastore(make_model(), PLACE, sequences, options, excluded=NOBODY)
    assert len(datastore.values) <= 36
    text = datastore.describe()
    assert f"{len(datastore.values)} of {datastore.database_tokens}" in text and "exactly, k = " in text


def test_in_bfloat16_the_copy_that_runs_gives_the_states():
    model, splits = make_model(), tiny_splits()
    datastore = build_datastore(model, NARROW, sequences_of(splits), KnnOptions(k=5), excluded=NOBODY)
    found = knn_losses(model, NARROW, datastore, MIXTURE)(batch_of(splits))[0]
    exact = knn_losses(model, PLACE, small(model, splits, k=5), MIXTURE)(batch_of(splits))[0]
    assert (found - exact).abs().mean() < 0.2


def test_faiss_answers_above_the_limit(monkeypatch):
    pytest.importorskip("faiss")
    model, splits = make_model(), tiny_splits()
    exact = knn_losses(model, PLACE, small(model, splits, k=5), MIXTURE)(batch_of(splits))[0]
    monkeypatch.setattr(knn_lm, "EXACT_KEYS", 1)
    datastore = small(model, splits, k=5)
    assert "faiss" in datastore.describe()
    assert torch.allclose(knn_losses(model, PLACE, datastore, MIXTURE)(batch_of(splits))[0], exact, rtol=0, atol=1e-3)


def test_tuning_finds_the_best_of_the_grid_and_a_copy_of_the_text_is_trusted():
    model, splits = make_model(), tiny_splits()
    copied = replace(splits, valid_chunks=splits.train_chunks)
    datastore, batch = small(model, splits, k=9), batch_of(copied)
    found = tune(model, PLACE, datastore, [batch])
    assert found.weight == max(WEIGHTS)  # the text is in the database
    best = knn_losses(model, PLACE, datastore, found)(batch)[0].sum()
    for weight in WEIGHTS:
        assert best <= knn_losses(model, PLACE, datastore, replace(found, weight=weight))(batch)[0].sum() + 1e-3
    for times in (0.5, 2.0):
        other = replace(found, temperature=found.temperature * times)
        assert best <= knn_losses(model, PLACE, datastore, other)(batch)[0].sum() + 1e-3


@pytest.mark.parametrize(("wanted", "documents"), [([0, 1, 2, 3, 4], 3), ([0, 2], 3), ([0, 1, 2], 99), ([1], 99)])
def test_each_half_of_the_text_is_another_document_s(wanted, documents):
    splits = tiny_splits()
    chunks = splits.valid_chunks
    chunks.document_ids[:] = 30 + np.arange(len(chunks)) // documents
    for seed in range(3):
        half = halves(splits, np.array(wanted), seed=seed)
        own = np.isin(np.arange(len(chunks)) // splits.sequence_chunks, wanted)
        assert 0.2 <= half[own].mean() <= 0.8
        if documents == 3:
            assert not set(chunks.document_ids[half & own]) & set(chunks.document_ids[~half & own])


def test_the_half_of_a_position_is_that_of_the_token_it_predicts():
    half = np.array([False, True, True, False])
    assert half_of_positions(half, np.array([0, 2]), 8, 4).tolist() == [
        [False] * 3 + [True] * 5,
        [True] * 3 + [False] * 5,
    ]


def test_what_cannot_be_tuned_is_mixed_as_published():
    model, splits = make_model(), tiny_splits()
    batch = batch_of(splits)
    nothing = batch._replace(targets=torch.full_like(batch.targets, -100))
    assert tune(model, PLACE, small(model, splits), [nothing]) == UNTUNED
