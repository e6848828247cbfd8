"""What follows --resume is a path or an override, and both are told apart."""

from pathlib import Path

import pytest

from retroflow.cli.fit import split_words
from retroflow.errors import RecipeError


@pytest.mark.parametrize(
    ("words", "overrides", "path"),
    [
        ([], [], "last"),
        (["trainer.device=cpu"], ["trainer.device=cpu"], "last"),
        (["runs/a/0001", "trainer.device=cpu"], ["trainer.device=cpu"], "runs/a/0001"),
        (["--trainer.device", "cpu", "runs/a/0001"], ["--trainer.device", "cpu"], "runs/a/0001"),
        (["--trainer.device=cpu", "runs/a/0001"], ["--trainer.device=cpu"], "runs/a/0001"),
    ],
)
def test_words_after_resume(words, overrides, path):
    assert split_words(words, resume=True) == (overrides, Path(path))


def test_without_resume_every_word_is_an_override():
    assert split_words(["runs/a/0001"], resume=False) == (["runs/a/0001"], None)


def test_two_paths_are_refused():
    with pytest.raises(RecipeError, match="takes one run folder or checkpoint, 2 given"):
        split_words(["a", "b"], resume=True)
