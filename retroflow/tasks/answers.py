"""How an answer is compared with the accepted ones.

Exact match and F1 as in the official evaluation of SQuAD 1.1 (Rajpurkar et al. 2016, arXiv:1606.05250); the test for an
answer in a passage as in DPR (Karpukhin et al. 2020, arXiv:2004.04906), on the same normalised words.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """Lower the case, and remove punctuation, articles and extra white space, in this order."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(given: str, accepted: Sequence[str]) -> float:
    """Return 1 if the answer is one of the accepted ones, normalised, else 0."""
    return float(any(normalised(given) == normalised(one) for one in accepted))


def f1(given: str, accepted: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of its words, for the best of the accepted answers."""
    return max(_f1(normalised(given).split(), normalised(one).split()) for one in accepted)


def _f1(given: list[str], accepted: list[str]) -> float:
    common = sum((Counter(given) & Counter(accepted)).values())
    return 2 * common / (len(given) + len(accepted)) if common else 0.0


def is_in(passage: str, accepted: Sequence[str]) -> bool:
    """Return whether the words of an accepted answer stand in a passage, normalised."""
    words = f" {normalised(passage)} "
    return any(each and f" {each} " in words for each in map(normalised, accepted))
