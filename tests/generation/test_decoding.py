"""The decode loop against the model without a cache; who is looked up, and when."""

import dataclasses
from collections import Counter

import pytest
import torch

from retroflow.errors import GenerationError, InvalidShapeError, RetrieverError
from retroflow.generation import GenerationOptions, generate, stream
from retroflow.generation.rows import aligned_length
from tests.generation.small import (
    END_OF_TEXT,
    Case,
    HashRetriever,
    LetterTokenizer,
    draw_case,
    generate_without_cache,
    make_model,
    windows_of,
)

TOKENIZER = LetterTokenizer()


def run(case):
    return generate(case.model, TOKENIZER, case.prompts, retriever=case.retriever, options=case.options)


def assert_cached_equals_uncached(seed):
    case = draw_case(seed)
    generations = run(case)
    for number, generation in enumerate(generations):
        assert generation.number == number
        assert list(generation.tokens) == generate_without_cache(case, number), (seed, number)
    assert_every_window_was_asked_for_once(case, generations)


def assert_every_window_was_asked_for_once(case, generations):
    """Whatever ran beside a row, its windows were looked up once each: those that a chosen token could read."""
    if case.retriever is None:
        return
    expected = Counter()
    for prompt, generation in zip(case.prompts, generations, strict=True):
        length = len(prompt)
        m = case.model.config.chunk_length
        padding = aligned_length(length, m, case.step) - length if case.options.align else 0
        known = [None] * padding + list(prompt) + list(generation.tokens[:-1])  # the last token is read by nobody
        windows = [window for window in windows_of(known, m, case.step) if window]
        assert len(windows) == len(generation.retrievals)
        assert [retrieval.query for retrieval in generation.retrievals] == [TOKENIZER.decode(w) for w in windows]
        expected.update(map(tuple, windows))
    assert Counter(map(tuple, case.retriever.asked)) == expected


@pytest.mark.parametrize("block", range(8))
def test_cached_generation_equals_uncached_token_for_token(block):
    """Guarantee 7, with and without retrieval, ragged batches, every retrieval step."""
    for seed in range(10 * block, 10 * block + 10):
        assert_cached_equals_uncached(seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_cached_generation_equals_uncached_in_a_thousand_cases(block):
    for seed in range(1000 + 50 * block, 1050 + 50 * block):
        assert_cached_equals_uncached(seed)


@pytest.mark.gpu
def test_a_gpu_generates_what_a_cpu_does():
    for seed in range(20):
        case = draw_case(seed)
        expected = run(case)
        assert run(dataclasses.replace(case, model=case.model.to("cuda"))) == expected


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("align", [True, False])
def test_a_row_is_the_same_alone_and_beside_any_others(step, align):
    options = {
        "temperature": 1.0,
        "retrieval_step": step,
        "align": align,
        "max_new_tokens": 9,
        "stop_at_end_of_text": False,
    }
    prompts = [[1], [2, 3, 4, 5, 6], [7] * 13, [8, 9, 10], [11] * 8]
    model = make_model(5)
    together = run(Case(model, prompts, HashRetriever(4), GenerationOptions(seed=40, **options)))
    for number, prompt in enumerate(prompts):
        alone = run(Case(model, [prompt], HashRetriever(4), GenerationOptions(seed=40 + number, **options)))
        assert alone[0].tokens == together[number].tokens
        assert [(r.end, r.query) for r in alone[0].retrievals] == [
            (r.end, r.query) for r in together[number].retrievals
        ]
    backwards = run(Case(model, prompts, HashRetriever(4), GenerationOptions(seed=40, batch_size=2, **options)))
    assert backwards == together


def test_aligned_prompts_are_answered_with_neighbours_at_once_and_others_are_not():
    model, retriever = make_model(1), HashRetriever(4)
    aligned, plain = (
        run(
            Case(
                model, [[1, 2]], retriever, GenerationOptions(max_new_tokens=3, align=align, stop_at_end_of_text=False)
            )
        )[0]
        for align in (True, False)
    )
    assert [retrieval.end for retrieval in aligned.retrievals] == [2]
    assert [retrieval.end for retrieval in plain.retrievals] == [4]
    assert aligned.retrievals[0].query == "bc" and aligned.sources[0].document == "d0"


@pytest.mark.parametrize(
    ("length", "step", "expected"),
    [(1, 4, 4), (4, 4, 4), (5, 4, 8), (9, 4, 12), (3, 1, 4), (7, 1, 7), (5, 3, 7), (8, 3, 10), (6, 2, 6)],
)
def test_a_prompt_is_padded_to_where_a_window_ends(length, step, expected):
    assert aligned_length(length, 4, step) == expected


def test_neighbours_change_the_text_and_none_do_not():
    model = make_model(3)
    options = GenerationOptions(max_new_tokens=24, stop_at_end_of_text=False)
    on = run(Case(model, [[1, 2, 3]], HashRetriever(4), options))[0]
    off = run(Case(model, [[1, 2, 3]], None, options))[0]
    assert on.tokens != off.tokens and off.retrievals == () and len(on.retrievals) == 6


def test_rows_that_have_ended_are_asked_for_no_more():
    """A stop text ends one row of three at once, too few to cut the batch; the others go on for two chunks."""
    model, prompts = make_model(2), [[1, 2, 3], [4, 5], [6]]
    options = GenerationOptions(max_new_tokens=8, stop_at_end_of_text=False)
    free = run(Case(model, prompts, HashRetriever(4), options))
    first = TOKENIZER.decode([free[0].tokens[0]])
    assert all(first not in generation.text for generation in free[1:])
    retriever = HashRetriever(4)
    generations = run(Case(model, prompts, retriever, dataclasses.replace(options, stop=(first,))))
    assert [generation.finish_reason for generation in generations] == ["stop", "length", "length"]
    assert [len(generation.retrievals) for generation in generations] == [1, 2, 2]
    assert len(retriever.asked) == 5 and retriever.calls == 2


def test_dropout_is_off_while_it_generates_and_on_again_afterwards():
    case = Case(make_model(4, dropout=0.5).train(), [[1, 2, 3]], None, GenerationOptions(max_new_tokens=20))
    assert run(case) == run(case)
    assert case.model.training
    pieces = stream(case.model, TOKENIZER, [[1]], options=case.options)
    next(pieces)
    assert not case.model.training
    pieces.close()
    assert case.model.training


def test_long_prompts_are_read_in_parts(monkeypatch):
    case = Case(make_model(6), [list(range(17)), [3]], HashRetriever(4), GenerationOptions(max_new_tokens=6))
    whole = run(case)
    monkeypatch.setattr("retroflow.generation.decoding.LOGITS_AT_ONCE", 29 * 2 * 3)  # three tokens of two rows
    assert run(case) == whole


def test_how_far_prompts_are_read_is_told_batch_by_batch(monkeypatch):
    monkeypatch.setattr("retroflow.generation.decoding.TOKENS_AT_ONCE", 8)
    told = []
    options = GenerationOptions(max_new_tokens=3, batch_size=1, stop_at_end_of_text=False)
    prompts = [[1] * 20, [2] * 3]
    list(stream(make_model(6), TOKENIZER, prompts, options=options, reading=lambda *far: told.append(far)))
    assert told == [(0, 4), (0, 20), (8, 20), (16, 20)]  # the shortest first


@pytest.mark.parametrize("options", [{}, {"stop": ("a",)}, {"max_new_tokens": 1}])
def test_the_pieces_of_a_stream_are_the_text(options):
    model = make_model(7)
    prompts = ["abc", "the end.", "q"]
    options = GenerationOptions(temperature=1.0, **({"max_new_tokens": 30} | options))
    pieces = list(stream(model, TOKENIZER, prompts, retriever=HashRetriever(4), options=options))
    whole = generate(model, TOKENIZER, prompts, retriever=HashRetriever(4), options=options)
    for generation in whole:
        own = [piece for piece in pieces if piece.number == generation.number]
        assert "".join(piece.text for piece in own) == generation.text
        assert own[-1].generation == generation and all(piece.generation is None for piece in own[:-1])
        assert generation.prompt == prompts[generation.number]


def test_an_end_of_text_ends_a_row_and_is_no_text():
    model = make_model(8)
    with torch.no_grad():
        model.output.weight[END_OF_TEXT] *= 4
    prompts = [[letter] for letter in range(20)]
    ending = generate(model, TOKENIZER, prompts, options=GenerationOptions(max_new_tokens=5))
    ended = [g for g in ending if g.finish_reason == "end_of_text"]
    assert ended and all(g.tokens[-1] == END_OF_TEXT and len(g.text) == len(g.tokens) - 1 for g in ended)
    going_on = generate(
        model, TOKENIZER, prompts, options=GenerationOptions(max_new_tokens=5, stop_at_end_of_text=False)
    )
    assert all(g.finish_reason == "length" and len(g.tokens) == 5 and "<" not in g.text for g in going_on)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([""], {}, r"prompts\[0\]: '' has no token; give at least one"),
        (["a", []], {}, r"prompts\[1\]: \[\] has no token"),
        ([[29]], {}, r"prompts\[0\]: token 29 given; the vocabulary has 29 entries, 0 to 28"),
        ([[-1]], {}, r"token -1 given"),
        (["ab\udcff"], {}, r"prompts\[0\]: 'ab\\udcff' is not text; give it in UTF-8"),
        ("abc", {}, r"prompts: one text given \('abc'\); a list of prompts is needed"),
        (None, {}, r"prompts: NoneType given"),
        ([None], {}, r"prompts\[0\]: None given; a text or a list of tokens, whole numbers, is needed"),
        ([[1.5]], {}, r"prompts\[0\]: \[1.5\] given; a text or a list of tokens"),
        (
            ["a"],
            {"retrieval_step": 5},
            r"retrieval_step is 5; allowed: a whole number from 1 to 4, the model's chunk length.",
        ),
    ],
)
def test_what_cannot_be_generated_is_refused_at_once(prompts, options, message):
    with pytest.raises(GenerationError, match=message) as caught:
        stream(make_model(), TOKENIZER, prompts, options=GenerationOptions(**options))
    assert caught.value.exit_code == 2 and isinstance(caught.value, ValueError)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused():
    with pytest.raises(GenerationError, match="it has 29 tokens, and the model 20"):
        generate(make_model(vocabulary_size=20), TOKENIZER, ["a"])


def test_tokens_that_the_tokenizer_lacks_are_never_chosen():
    """Vocabularies of published models are padded: their last logits belong to no token."""
    model = make_model(9, vocabulary_size=64)
    with torch.no_grad():
        model.output.weight[29:] *= 30
    for temperature in (0.0, 2.0):
        options = GenerationOptions(max_new_tokens=30, temperature=temperature)
        assert max(generate(model, TOKENIZER, ["abc"], options=options)[0].tokens) < 29


def test_a_retriever_that_answers_in_another_shape_is_named():
    class Short(HashRetriever):
        def retrieve(self, queries, num_neighbours):
            return self.answer(queries, num_neighbours - 1)

    with pytest.raises(RetrieverError, match=r"Short.retrieve gave tokens \[1, 1, 8\].*\[1, 2, 8\] twice"):
        generate(make_model(), TOKENIZER, ["abc"], retriever=Short(4))


def test_no_prompts_make_no_text():
    assert generate(make_model(), TOKENIZER, []) == []


def test_the_model_refuses_an_empty_call():
    model = make_model()
    with pytest.raises(InvalidShapeError, match="length >= 1"):
        model.extend(torch.zeros(1, 0, dtype=torch.int64), model.new_cache())
