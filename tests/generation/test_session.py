"""Answers in the order of their prompts, sources as a person reads them."""

import json

from retroflow.generation import Generation, Piece, Retrieval, Source
from retroflow.generation.prompts import PlacedPrompt
from retroflow.generation.session import ReadingLines, describe_sources, in_turn, notes_on_length, to_json
from tests.generation.small import LetterTokenizer


def generation(number, text="t", retrievals=()):
    return Generation(number, "p", (1, 2), text, "length", tuple(retrievals))


def test_pieces_come_prompt_after_prompt_and_as_soon_as_they_may():
    made = [
        Piece(1, "b", None),
        Piece(0, "a", None),
        Piece(2, "c", generation(2)),
        Piece(1, "B", generation(1)),
        Piece(0, "A", generation(0)),
    ]
    seen = []

    def watched():
        for piece in made:
            seen.append(piece.text)
            yield piece

    order = [(piece.text, len(seen)) for piece in in_turn(watched())]
    assert order == [("a", 2), ("A", 5), ("b", 5), ("B", 5), ("c", 5)]


def test_sources_are_shown_with_document_text_and_score():
    found = Source("doc/3", "A \x1b[32mtitle", "file.jsonl:3", "line\n\x1b[31mred" + "x" * 400, -0.25, 7)
    shown = describe_sources(
        generation(4, retrievals=[Retrieval(16, "the\tquery", (found,)), Retrieval(32, "q", ())]), "l2"
    )
    lines = shown.splitlines()
    assert lines[0] == "sources of prompt 5 (score: minus the squared distance; 0 means equal embeddings)"
    assert lines[1] == r"  after 16 tokens, for: the\tquery"
    assert lines[2] == r"    -0.2500  A \x1b[32mtitle, doc/3, file.jsonl:3"
    assert lines[3].startswith(r"      line\n\x1b[31mred") and lines[3].endswith("x...") and "\x1b" not in shown
    assert lines[4] == "  after 32 tokens, for: q"
    assert describe_sources(generation(0), "l2").splitlines()[1] == "  nothing was retrieved"


def test_a_generation_is_json():
    found = Source("d", "", "", "text", -1.0, 2)
    values = json.loads(json.dumps(to_json(generation(1, retrievals=[Retrieval(4, "q", (found,))]))))
    assert values["number"] == 1 and values["tokens"] == [1, 2] and values["finish_reason"] == "length"
    assert values["retrievals"] == [
        {
            "end": 4,
            "query": "q",
            "sources": [{"document": "d", "title": "", "source": "", "text": "text", "score": -1.0, "chunk": 2}],
        }
    ]


def test_prompts_much_longer_than_those_of_training_are_noted():
    prompts = [PlacedPrompt("a" * 40, "p.txt:1"), PlacedPrompt("b" * 41, "p.txt:2")]
    (note,) = notes_on_length(prompts, LetterTokenizer(), 10)
    assert note.startswith("p.txt:2: 41 tokens, 4 times the 10 of a training sequence")
    assert "grows with the square" in note


def test_reading_a_long_prompt_tells_how_far_it_is_and_how_long_it_takes():
    """Each thousand tokens takes a second longer than the one before: 1 + 2 + ... + 10 s in all."""
    clock, lines = [0.0], []
    reading = ReadingLines(lines.append, clock=lambda: clock[0])
    reading(0, 10_000)
    for part in range(1, 10):
        clock[0] += part
        reading(1000 * part, 10_000)
    assert lines == [
        "reading the prompt: 2,000 of 10,000 tokens, about 52 s left",
        "reading the prompt: 4,000 of 10,000 tokens, about 45 s left",
        "reading the prompt: 5,000 of 10,000 tokens, about 40 s left",
        "reading the prompt: 6,000 of 10,000 tokens, about 34 s left",
        "reading the prompt: 7,000 of 10,000 tokens, about 27 s left",
        "reading the prompt: 8,000 of 10,000 tokens, about 19 s left",
        "reading the prompt: 9,000 of 10,000 tokens, about 10 s left",
    ]
    reading(0, 20_000)  # other prompts
    clock[0] += 1
    reading(10_000, 20_000)
    assert len(lines) == 7
