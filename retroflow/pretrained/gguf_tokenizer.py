"""The tokenizer in a GGUF, built by the rules that the model was trained with.

A GGUF holds the vocabulary and the merges of a tokenizer, and one word, `tokenizer.ggml.pre`, for the rules by which
text is cut before merging. transformers builds a tokenizer of it, too, and falls back to the rules of GPT-2 where it
does not know the word: other tokens, and nobody is told. So the rules of every known word are here, after the
tokenizer.json files of the models, and any other word is refused.

Sources: `llama_vocab` in https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp for the words; the
tokenizer.json of SmolLM2, StarCoder2, Qwen2, Llama 3 and Mistral Nemo for normalisers and `ignore_merges`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from retroflow.corpus.chat_templates import with_beginning
from retroflow.corpus.tokenizer import KNOWN_END_OF_TEXT, Tokenizer
from retroflow.errors import DamagedDataError, UsageError
from retroflow.pretrained.gguf_file import GGUFHeader

_CONTROL, _USER_DEFINED = 3, 4
"""Kinds of token, in `tokenizer.ggml.token_type`."""

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _gpt2() -> PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _digits() -> PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _split(pattern: str) -> Callable[[], PreTokenizer]:
    def make() -> PreTokenizer:
        cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    return make


@dataclass(frozen=True)
class Rules:
    """How text becomes tokens, beside vocabulary and merges.

    Attributes:
        cut: makes what cuts text into words.
        composes: whether text is brought into Unicode's composed form (NFC) first.
        whole_words: whether a word that is in the vocabulary is one token, whatever its merges say.
    """

    cut: Callable[[], PreTokenizer]
    composes: bool = False
    whole_words: bool = False


# tokenizer.ggml.pre -> rules; each row is proved by tests/pretrained/test_gguf.py.
RULES: dict[str, Rules] = {
    "gpt-2": Rules(_gpt2),
    "olmo": Rules(_gpt2, composes=True),
    "smollm": Rules(_digits),
    "starcoder": Rules(_digits),
    "qwen2": Rules(_split(_QWEN2), composes=True),
    "llama-bpe": Rules(_split(_LLAMA3), whole_words=True),
    "tekken": Rules(_split(_TEKKEN), whole_words=True),
}


def gguf_tokenizer(header: GGUFHeader) -> Tokenizer:
    """Build the tokenizer of a GGUF.

    Its end of text is the token that separated documents in pretraining, where the vocabulary has one of the known
    names, and else the file's own: instruction-tuned models name the end of a turn.

    Raises:
        UsageError: a kind of vocabulary or a `tokenizer.ggml.pre` that is not known here.
        DamagedDataError: the vocabulary is incomplete.
    """
    given = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in header.metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    rules = _rules_of(header, given)
    try:
        backend = _backend(given, rules)
        end_of_text = _end_of_text(given)
    except Exception as error:  # the library raises plain Exception for merges that do not fit the vocabulary
        raise DamagedDataError(
            f'model.base: the vocabulary in "{header.path}" cannot be read ({type(error).__name__}: {error}). Download '
            "the file again."
        ) from error
    beginning = given.get("bos_token_id")
    template = with_beginning(
        header.metadata.get("tokenizer.chat_template"), None if beginning is None else given["tokens"][int(beginning)]
    )
    return Tokenizer(backend, end_of_text=end_of_text, origin=str(header.path), chat_template=template)


def _rules_of(header: GGUFHeader, given: dict[str, Any]) -> Rules:
    remedy = "Give the model as a folder that holds its tokenizer.json, or name one with data.tokenizer."
    if given.get("model") != "gpt2":
        raise UsageError(
            f'model.base: "{header.path}" has a vocabulary of the kind "{given.get("model")}" (tokenizer.ggml.model); '
            f'only "gpt2", byte-level BPE, can be read from a GGUF. {remedy}'
        )
    name = given.get("pre")
    if name not in RULES:
        raise UsageError(
            f'model.base: "{header.path}" cuts text by the rules "{name}" (tokenizer.ggml.pre), which are not known '
            f"here: {', '.join(RULES)} are. {remedy}"
        )
    return RULES[name]


def _backend(given: dict[str, Any], rules: Rules) -> tokenizers.Tokenizer:
    words: list[str] = given["tokens"]
    merges = [(left, right) for left, right in (merge.split(" ") for merge in given["merges"])]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=rules.whole_words))
    backend.normalizer = normalizers.NFC() if rules.composes else None
    backend.pre_tokenizer = rules.cut()
    backend.decoder = decoders.ByteLevel()
    kinds = given["token_type"]
    for kind in (_CONTROL, _USER_DEFINED):
        special = kind == _CONTROL
        added = [word for word, own in zip(words, kinds, strict=True) if own == kind]
        backend.add_tokens([AddedToken(word, normalized=False, special=special) for word in added])
    return backend


def _end_of_text(given: dict[str, Any]) -> str:
    control = {word for word, kind in zip(given["tokens"], given["token_type"], strict=True) if kind == _CONTROL}
    own = given["tokens"][given["eos_token_id"]]
    return next((name for name in KNOWN_END_OF_TEXT if name in control), own)
