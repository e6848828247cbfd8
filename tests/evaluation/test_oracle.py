"""An oracle is never worse than what was found, and takes the best of its candidates."""

import pytest
import torch

from retroflow.evaluation.measuring import token_losses
from retroflow.evaluation.oracle import by_window, oracle_losses, taking, windows_read
from tests.evaluation.test_prompted import PLACE, batch_of, make_model, make_texts


def make_batches(step, candidates=5, k=2):
    windows = (20 - 4) // step + 1
    texts, retrieved, mask = make_texts(3, 20, windows, candidates)
    mask[0, 0, 1:] = False
    candidates = batch_of(texts, retrieved, mask)
    candidates.targets[:, 9:11] = -100
    return candidates, taking(candidates, torch.arange(k).expand(3, windows, k))


@pytest.mark.parametrize("step", [2, 3, 4])
def test_it_is_never_worse_than_on_in_any_window(step):
    model, (candidates, found) = make_model(), make_batches(step)
    on = token_losses(model, PLACE, step)(found)
    best = oracle_losses(model, PLACE, k=2, step=step)(candidates, found)
    windows = found.retrieved.shape[1]
    gains = by_window(on, windows, 4, step) - by_window(best, windows, 4, step)
    assert (gains >= 0).all() and gains.sum() > 0.1
    assert torch.equal(best[:, :3], on[:, :3]) and (best[:, 9:11] == 0).all()


def test_of_one_chunk_it_takes_the_best_by_a_literal_search():
    model, (candidates, found) = make_model(), make_batches(4)
    candidates, found = (
        each._replace(tokens=each.tokens[:, :8], targets=each.targets[:, :8],
                      retrieved=each.retrieved[:, :2], retrieved_mask=each.retrieved_mask[:, :2])
        for each in (candidates, found)
    )  # fmt: skip
    losses = token_losses(model, PLACE)

    def second_chunk(places):  # nats of positions 3 to 6, which read the first window
        return losses(taking(candidates, torch.tensor(places).expand(3, 2, len(places))))[:, 3:7].sum(1)

    alone = torch.stack([second_chunk([place]) for place in range(5)], 1)
    alone[~candidates.retrieved_mask[:, 0].any(-1)] = torch.inf
    best = oracle_losses(model, PLACE, k=1)(candidates, taking(candidates, torch.zeros(3, 2, 1, dtype=torch.int64)))
    assert torch.allclose(best[:, 3:7].sum(1), alone.min(1).values, atol=1e-4)


def test_nothing_depends_on_the_batch():
    model, (candidates, found) = make_model(), make_batches(4)
    oracle = oracle_losses(model, PLACE, k=2)
    one_by_one = torch.cat([oracle(candidates.rows(row, row + 1), found.rows(row, row + 1)) for row in range(3)])
    assert torch.allclose(oracle(candidates, found), one_by_one, rtol=0, atol=2e-5)


def test_positions_read_the_newest_window_that_has_ended():
    assert windows_read(11, 4, 4, 2).tolist() == [-1, -1, -1, 0, 0, 1, 1, 2, 2, 3, 3]
    assert windows_read(9, 2, 4, 4).tolist() == [-1, -1, -1, 0, 0, 0, 0, 1, 1]
    assert by_window(torch.ones(1, 9), 2, 4, 4).tolist() == [[4.0, 2.0]]
