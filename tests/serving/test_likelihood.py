"""Log probabilities of tokens, in parts of any size."""

import pytest

from retroflow.generation import GenerationOptions, decoding
from retroflow.generation.decoding import Decoding
from retroflow.generation.rows import Row
from retroflow.serving import likelihood
from retroflow.serving.likelihood import nats_without_retrieval, prompt_scores
from tests.serving.small import CHUNK, prompt_of


@pytest.mark.parametrize("at_once", [1, 3, 7, 4096])
def test_the_last_tokens_of_a_row_have_the_nats_that_all_have(opened, monkeypatch, at_once: int) -> None:
    monkeypatch.setattr(likelihood, "_NUMBERS_AT_ONCE", 7 * at_once * opened.tokenizer.vocabulary_size)
    options = GenerationOptions(align=False, num_neighbours=2)
    unaligned = Decoding(opened.model, opened.tokenizer, None, options, CHUNK, None)
    tokens = opened.tokenizer.encode(prompt_of(1, 30)).ids.tolist()
    for length in (4, 5, 17, 40):
        row = Row(0, "", tokens[:length], opened.tokenizer, ())
        shorter = Row(1, "", tokens[1 : length - 1], opened.tokenizer, ())
        whole, other = (unaligned.losses(each.followed_by([]))[0] for each in (row, shorter))
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "TOKENS_AT_ONCE", at_once)
            scores = [-score.logprob for score in prompt_scores(unaligned, row, 1)]
            assert scores[1:] == pytest.approx(whole, abs=1e-4) and len(scores) == length
            for count in range(1, length):
                found = nats_without_retrieval(unaligned, [row, shorter], [count, 1])
                assert found[0] == pytest.approx(whole[-count:], abs=1e-4)
                assert found[1] == pytest.approx(other[-1:], abs=1e-4)
