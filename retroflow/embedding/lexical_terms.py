"""The check of the lexical embedder's options for `recipe check`; a separate file, so that numpy is not loaded."""

from collections.abc import Mapping
from typing import Any

from retroflow.errors import UsageError


def check_terms(options: Mapping[str, Any]) -> None:
    """Refuse options under which no text has a term.

    Raises:
        UsageError: neither word nor character n-grams are terms.
    """
    if options.get("word_ngrams") == 0 and options.get("character_ngram") == 0:
        raise UsageError(
            "embedder.word_ngrams and embedder.character_ngram are both 0, so no text has a term; set one."
        )
