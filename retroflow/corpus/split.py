"""The split of a document, decided by a hash of its id or of its group.

A hash needs no list of documents, is the same on every machine, and does not move a document when others are added.
Shares are nested: what is chosen at 0.1 is also chosen at 0.2.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from retroflow.errors import UsageError
from retroflow.protocols import Split


def hash_fraction(key: str, *, purpose: str) -> float:
    """Map a key to [0, 1), uniformly and independently for each purpose."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=purpose.encode()).digest()
    # A float represents 53 bits exactly; 64 could round up to 1.0.
    return float((int.from_bytes(digest, "big") >> 11) / 2**53)


def choose_split(key: str, valid_share: float) -> Split:
    """Return "valid" for a `valid_share` of all keys, else "train"."""
    return "valid" if hash_fraction(key, purpose="retroflow-split") < valid_share else "train"


def chosen(key: str, share: float) -> bool:
    """Return whether a key is among a `share` of all keys; independent of `choose_split`."""
    return hash_fraction(key, purpose="retroflow-share") < share


def check_held_out(options: Mapping[str, Any]) -> None:
    """Refuse a corpus without training or validation text, before it is read.

    Only training needs both; a retrieval database needs no validation text.

    Args:
        options: the recipe's corpus section.

    Raises:
        UsageError: valid_share is 0 and there is no separate path for validation, or that path equals the training
            path.
    """
    for key, valid_key in (("path", "valid_path"), ("split", "valid_split")):
        if options.get(valid_key) is not None and options.get(valid_key) == options.get(key):
            raise UsageError(
                f'corpus.{valid_key} is "{options[valid_key]}", as corpus.{key} is, so that no text is left to train '
                f"on. Name other text, or leave it out: corpus.valid_share of corpus.{key} is then held out."
            )
    own = [key for key in ("valid_path", "valid_split") if key in options]
    if options.get("valid_share") == 0 and all(options[key] is None for key in own):
        instead = "".join(f", or give corpus.{key}" for key in own)
        raise UsageError(
            "corpus.valid_share is 0, so that no text is left to evaluate the model on; allowed: a number above 0 and "
            f"below 1. Leave it out (0.05){instead}."
        )
