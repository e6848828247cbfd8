"""Answers are compared as the official evaluation of SQuAD compares them."""

import pytest

from retroflow.tasks.answers import exact_match, f1, is_in, normalised


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("The  Quick, brown fox!", "quick brown fox"),
        ("a man's an island", "mans island"),
        ("theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("1,000 metres\n", "1000 metres"),
        ("The", ""),
        ("Beyoncé", "beyoncé"),
        ("“the” end", "“ ” end"),  # only ASCII punctuation is removed
    ],
)
def test_case_punctuation_articles_and_spaces_do_not_count(answer, wanted):
    assert normalised(answer) == wanted


@pytest.mark.parametrize(
    ("given", "accepted", "exact", "overlap"),
    [
        ("the Denver Broncos", ["Denver Broncos"], 1, 1.0),
        ("Denver", ["Denver Broncos"], 0, 2 / 3),
        ("Broncos of Denver", ["Carolina", "Denver Broncos"], 0, 0.8),
        ("no", ["yes"], 0, 0.0),
        ("", ["yes"], 0, 0.0),
        (
            "a b b",
            ["b b c c"],
            0,
            2 * (2 / 2) * (2 / 4) / (2 / 2 + 2 / 4),
        ),  # "a" is an article; words count as often as both have them
        ("December 14, 1972", ["14 December 1972 UTC", "December 1972"], 0, 6 / 7),
    ],
)
def test_known_cases(given, accepted, exact, overlap):
    assert exact_match(given, accepted) == exact and f1(given, accepted) == pytest.approx(overlap)


def test_an_answer_is_found_as_whole_words():
    passage = "title: Moon, source: Astronauts last stood there in December, 1972. The end."
    assert is_in(passage, ["1999", "december 1972"]) and is_in(passage, ["the 1972"])
    assert not is_in(passage, ["97"]) and not is_in(passage, ["ember 1972"]) and not is_in(passage, ["The"])
