"""Splits by hash: even, stable, nested."""

import pytest

from retroflow.corpus.split import check_held_out, choose_split, chosen, hash_fraction
from retroflow.errors import UsageError

SPLIT_OF_A = 0.43114815327656
KEYS = [f"document {i}" for i in range(4000)]


def test_a_share_takes_about_that_share_of_the_keys() -> None:
    assert sum(choose_split(key, 0.1) == "valid" for key in KEYS) == pytest.approx(400, rel=0.15)
    assert sum(chosen(key, 0.45) for key in KEYS) == pytest.approx(1800, rel=0.1)


def test_shares_are_nested() -> None:
    small, large = ({key for key in KEYS if chosen(key, share)} for share in (0.3, 0.45))
    assert small < large
    assert all(chosen(key, 1.0) for key in KEYS)


def test_the_split_does_not_depend_on_being_chosen() -> None:
    among_chosen = [key for key in KEYS if chosen(key, 0.5)]
    assert sum(choose_split(key, 0.2) == "valid" for key in among_chosen) == pytest.approx(400, rel=0.2)


def test_nothing_is_held_out_at_share_zero() -> None:
    assert {choose_split(key, 0.0) for key in KEYS} == {"train"}


def test_the_hash_is_the_same_for_ever() -> None:
    """A change here moves documents between splits in every existing run."""
    assert hash_fraction("a", purpose="retroflow-split") == pytest.approx(SPLIT_OF_A, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"valid_share": 0}, "corpus.valid_share is 0, so that no text is left to evaluate the model on"),
        ({"valid_share": 0, "valid_path": None, "path": "a"}, "or give corpus.valid_path."),
        ({"valid_share": 0.1, "valid_path": "a", "path": "a"}, 'corpus.valid_path is "a", as corpus.path is'),
        (
            {"valid_share": 0.1, "valid_split": "train", "split": "train"},
            'corpus.valid_split is "train", as corpus.split',
        ),
    ],
)
def test_a_corpus_without_text_to_train_or_validate_on_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_held_out(options)
    check_held_out({"valid_share": 0, "path": "a", "valid_path": "b"})
    check_held_out({"valid_share": 0.1, "path": "a", "valid_path": None})
