"""Text that is given out is never taken back, whatever the tokens cut through."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from retroflow.corpus.tokenizer import Tokenizer, train_tokenizer
from retroflow.generation.text_stream import TextStream
from retroflow.testing.tiny_corpus import tiny_texts

BYTES = train_tokenizer(["no merge"], 257)
MERGED = train_tokenizer([*tiny_texts(8), "Grüße, 世界! 👩‍👩‍👧 čeština " * 20], 500)


def words_tokenizer():
    """Tokens are words; the decoder joins them with spaces, which a decoder of single tokens would lose."""
    vocabulary = {word: place for place, word in enumerate(["▁the", "▁cat", "s", "▁sat", "."])}
    backend = Backend(models.WordLevel(vocabulary, unk_token="."))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return Tokenizer(backend, origin="test")


def streamed(tokenizer, tokens, stop=()):
    """Pieces and the stream; what is given out is checked to be the text."""
    stream = TextStream(tokenizer, stop)
    pieces = []
    for token in tokens:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    assert "".join(pieces) == stream.text
    return pieces, stream


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40))
@pytest.mark.parametrize("tokenizer", [BYTES, MERGED], ids=["bytes", "merged"])
def test_any_text_comes_out_as_it_went_in(tokenizer, text):
    text = text.encode("utf-8", "replace").decode()  # without lone surrogates
    pieces, _ = streamed(tokenizer, tokenizer.encode(text).ids.tolist())
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces[:-1]) or "\ufffd" in text


@settings(max_examples=150, deadline=None)
@given(tokens=st.lists(st.integers(0, 499), max_size=30))
def test_any_tokens_give_what_the_tokenizer_makes_of_them_as_a_whole(tokens):
    """Bytes that are no character too: the pieces are the text that a whole decoding gives."""
    pieces, _ = streamed(MERGED, tokens)
    assert "".join(pieces) == MERGED.decode(tokens)


def test_a_character_appears_when_its_last_byte_is_there():
    tokens = BYTES.encode("a世b").ids.tolist()
    assert len(tokens) == 5
    pieces, _ = streamed(BYTES, tokens)
    assert pieces == ["a", "", "", "世", "b", ""]


def test_an_unfinished_character_at_the_end_is_shown_as_such():
    tokens = BYTES.encode("a世").ids.tolist()[:-1]
    pieces, _ = streamed(BYTES, tokens)
    assert pieces[-1] == "\ufffd" and "".join(pieces) == "a\ufffd" == BYTES.decode(tokens)


def test_spaces_between_words_are_kept():
    tokenizer = words_tokenizer()
    pieces, _ = streamed(tokenizer, [0, 1, 2, 3, 4])
    assert pieces == ["the", " cat", "s", " sat", ".", ""]


def test_a_stop_text_ends_the_text_before_it_however_the_tokens_cut_it():
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices("ab\né", k=draw.randint(0, 25)))
        stop = tuple("".join(draw.choices("ab\né", k=draw.randint(1, 4))) for _ in range(draw.randint(1, 3)))
        # What reading letter by letter gives: the text before the stop text that is complete first.
        ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(one) for one in stop)]
        expected = text
        if ends:
            expected = text[: min(ends[0] - len(one) for one in stop if text[: ends[0]].endswith(one))]
        for tokenizer in (BYTES, MERGED):
            pieces, stream = streamed(tokenizer, tokenizer.encode(text).ids.tolist(), stop)
            assert "".join(pieces) == expected and stream.stopped == bool(ends), (text, stop)


def test_only_what_may_become_a_stop_text_is_held_back():
    stream = TextStream(BYTES, ("STOP",))
    given = [stream.push(token) for token in BYTES.encode("a STOB STOP no").ids.tolist()]
    assert given[:8] == ["a", " ", "", "", "", "STOB", " ", ""]
    assert stream.text == "a STOB " and stream.stopped
    assert stream.finish() == "" and stream.push(65) == ""
