"""Text to tokens and back: a byte-level BPE trained on the corpus, or any fast Hugging Face tokenizer.

Encoding also returns the byte at which every token begins, for losses per byte and the sizes of chunks.
"""

import hashlib
import heapq
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from retroflow.corpus.chat_templates import chat_template_beside, with_beginning
from retroflow.corpus.documents import LEAST_VOCABULARY
from retroflow.errors import DamagedDataError, UsageError
from retroflow.hub import files_on_hub, from_cache_or_hub

T = TypeVar("T")

END_OF_TEXT = "<|endoftext|>"
# Tried in this order if a tokenizer's configuration names no end-of-text token.
KNOWN_END_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
BYTE_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())

# Long documents are encoded in segments, because the library needs about 70 bytes per token. One of its threads
# encodes a segment; a group of segments is encoded at a time.
SEGMENT_CHARACTERS = 1 << 18
GROUP_CHARACTERS = 1 << 22
# No tokenizer joins text across a single line break between two characters that are not spaces.
SEGMENT_END = re.compile(r"(?<=\S\n)(?=\S)")

TRAIN_BYTES = 100_000_000

# Learning merges takes time proportional to a word's pairs: one word of a million letters takes minutes. This is
# GPT-2's division into words with a maximum word length, which no ordinary word reaches.
WORD_CHARACTERS = 256
_RUN = f"{{1,{WORD_CHARACTERS}}}"
WORDS = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}{_RUN}| ?\p{{N}}{_RUN}| ?[^\s\p{{L}}\p{{N}}]{_RUN}|\s{_RUN}(?!\S)|\s{_RUN}"

# Another version of the library may learn another vocabulary from the same texts.
TRAINED_BY = "tokenizers " + ".".join(tokenizers.__version__.split(".")[:2])


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text as tokens.

    Attributes:
        ids: int32 [t], values in [0, vocabulary_size).
        byte_starts: int64 [t], non-decreasing, the first 0: the UTF-8 byte of the text at which each token begins.
        num_bytes: UTF-8 bytes of the text, the end of the last token.
    """

    ids: NDArray[np.int32]
    byte_starts: NDArray[np.int64]
    num_bytes: int


class Tokenizer:
    """A fast tokenizer with an end-of-text token, for plain text only.

    Names of special tokens in a text are encoded letter by letter. Nothing is added, truncated or padded.

    Args:
        backend: the library's tokenizer; changed in place.
        end_of_text: content of its end-of-text token; added as the last token if the tokenizer does not have it.
        origin: its source, for people.
        chat_template: Jinja template that turns messages into a prompt; not part of the fingerprint.

    Attributes:
        vocabulary_size: one more than the largest token id.
        end_of_text: id of the end-of-text token.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        end_of_text: str = END_OF_TEXT,
        origin: str,
        chat_template: str | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        vocabulary = backend.get_vocab(with_added_tokens=True)
        if end_of_text not in vocabulary:
            backend.add_special_tokens([AddedToken(end_of_text, special=True, normalized=False)])
            vocabulary = backend.get_vocab(with_added_tokens=True)
        backend.encode_special_tokens = True
        self.origin, self.chat_template = origin, chat_template
        self.end_of_text_token = end_of_text
        self.end_of_text = vocabulary[end_of_text]
        self.vocabulary_size = max(vocabulary.values()) + 1
        self._backend = backend
        self._with_specials: tokenizers.Tokenizer | None = None
        self._token_bytes = _token_bytes(backend, self.vocabulary_size)

    def __reduce__(self) -> tuple[Any, ...]:
        # The library's own pickling loses the setting that special tokens in a text are letters.
        return _rebuilt, (self._backend.to_str(), self.end_of_text_token, self.origin, self.chat_template)

    def encode(self, text: str) -> Encoded:
        """Encode one text; see `encode_batch`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode texts, in parallel if the library may (TOKENIZERS_PARALLELISM) and without the GIL.

        Long texts are divided into segments at line ends, so that memory grows with the result only.

        Args:
            texts: Unicode without lone surrogates.
        """
        segments = [list(split_segments(text)) for text in texts]
        encoded = self._encode_segments(segment for of_text in segments for segment in of_text)
        return [_join([next(encoded) for _ in of_text]) for of_text in segments]

    @property
    def special_tokens(self) -> list[str]:
        """Names of tokens that no text has, such as the end of text."""
        return [token.content for token in self._backend.get_added_tokens_decoder().values() if token.special]

    def encode_with_specials(self, text: str) -> list[int]:
        """Encode one text in which names of special tokens mean these tokens."""
        if self._with_specials is None:
            self._with_specials = tokenizers.Tokenizer.from_str(self._backend.to_str())
            self._with_specials.encode_special_tokens = False
        return list(self._with_specials.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Turn tokens back into text, special tokens included; exact for a byte-level tokenizer."""
        return self.decode_batch([ids])[0]

    def decode_batch(self, batch: Sequence[Sequence[int] | NDArray[np.integer]]) -> list[str]:
        """Decode several token sequences, in parallel if the library may.

        If a sequence ends inside a character, that character becomes U+FFFD.
        """
        lists = [np.asarray(ids, dtype=np.int64).tolist() for ids in batch]
        return self._backend.decode_batch(lists, skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json into an existing folder; transformers can load it too."""
        (folder / "tokenizer.json").write_text(self._backend.to_str(), encoding="utf-8")
        end = self.end_of_text_token
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": end,
            "pad_token": end,
            "padding_side": "left",
        }
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def fingerprint(self) -> str:
        """Return the SHA-256 of the tokenizer's canonical JSON and its end-of-text token, as hexadecimal digits."""
        values = json.loads(self._backend.to_str())
        if (values["post_processor"] or {}).get("special_tokens") == {}:
            values["post_processor"] = None  # a template that adds nothing, which transformers writes for none
        content = json.dumps(
            [values, self.end_of_text_token],
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=True,
        )
        return hashlib.sha256(content.encode()).hexdigest()

    def _encode_segments(self, segments: Iterable[str]) -> Iterator[Encoded]:
        for group in grouped(segments, len, GROUP_CHARACTERS):
            if self._token_bytes is None:
                encodings = self._backend.encode_batch(group, add_special_tokens=False)
                yield from map(_encoded_by_offsets, encodings, group)
                continue
            # The fast call computes no offsets; byte-level tokens determine their number of bytes themselves.
            encodings = self._backend.encode_batch_fast(group, add_special_tokens=False)
            for encoding, segment in zip(encodings, group, strict=True):
                yield self._encoded_by_lengths(encoding, segment, self._token_bytes)

    def _encoded_by_lengths(self, encoding: tokenizers.Encoding, text: str, token_bytes: NDArray[np.int64]) -> Encoded:
        ids = np.array(encoding.ids, dtype=np.int32)  # [t]
        num_bytes = len(text.encode())
        ends = np.cumsum(token_bytes[ids])  # [t]
        if (int(ends[-1]) if len(ends) else 0) != num_bytes:
            # A normaliser, or an added token that removes spaces, changed the text.
            return _encoded_by_offsets(self._backend.encode(text, add_special_tokens=False), text)
        return Encoded(ids, ends - token_bytes[ids], num_bytes)


def _rebuilt(content: str, end_of_text: str, origin: str, chat_template: str | None) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(content)
    return Tokenizer(backend, end_of_text=end_of_text, origin=origin, chat_template=chat_template)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, *, train_bytes: int = TRAIN_BYTES) -> Tokenizer:
    """Train a byte-level BPE with one special token, `<|endoftext|>`; any text round-trips exactly.

    The same texts give the same tokenizer. A small corpus may have too few merges; the tokenizer is then smaller than
    `vocabulary_size`. Words longer than `WORD_CHARACTERS` are cut, so that text without spaces, such as DNA, takes no
    longer than other text.

    Args:
        texts: the training texts, read once to the end.
        vocabulary_size: `LEAST_VOCABULARY` (256 bytes and the special token) or more.
        train_bytes: size of the sample to learn from, drawn evenly from all texts.

    Raises:
        UsageError: the vocabulary is too small.
    """
    if vocabulary_size < LEAST_VOCABULARY:
        raise UsageError(
            f"data.vocabulary_size is {vocabulary_size}; allowed: a whole number of at least {LEAST_VOCABULARY}."
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=BYTE_ALPHABET,
        show_progress=False,
    )
    backend.train_from_iterator(_sample_segments(texts, train_bytes), trainer)
    return Tokenizer(backend, origin="trained on the corpus")


def load_tokenizer(name_or_folder: str) -> Tokenizer:
    """Load a tokenizer from a folder with a tokenizer.json (or that file), the Hugging Face cache, or the hub.

    They are tried in this order. A tokenizer without an end-of-text token (BERT's) gets `<|endoftext|>` as a new last
    token.

    Raises:
        UsageError: nothing of that name exists or can be reached, or it has no fast version.
        DamagedDataError: a tokenizer.json is damaged.
    """
    path = os.path.expanduser(name_or_folder)
    is_folder = os.path.isdir(path)
    file = os.path.join(path, "tokenizer.json") if is_folder else path
    if os.path.isfile(file):
        return _from_file(Path(file))
    return _from_transformers(path if is_folder else name_or_folder, is_folder=is_folder)


def _from_file(file: Path) -> Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
        config_file = file.with_name("tokenizer_config.json")
        config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
        eos_token = config.get("eos_token")
        template = chat_template_beside(file, config)
    except OSError as error:
        raise UsageError(f"data.tokenizer: {file} cannot be read ({error.strerror}). Make it readable.") from error
    except Exception as error:  # the library raises plain Exception for content it cannot parse
        raise DamagedDataError(
            f"data.tokenizer: {file} is not a tokenizer of the tokenizers library ({error}). Copy or save it again."
        ) from error
    name = eos_token.get("content") if isinstance(eos_token, dict) else eos_token
    return Tokenizer(backend, end_of_text=_end_of_text(backend, name), origin=str(file), chat_template=template)


def _from_transformers(name: str, *, is_folder: bool) -> Tokenizer:
    place = f"the folder {os.path.abspath(os.path.expanduser(name))}"
    if not is_folder and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UsageError(_not_found(name, f"{place} (does not exist)"))
    # Imported here because it takes seconds, and a tokenizer.json does not need it.
    from transformers import AutoTokenizer

    def load(local_files_only: bool) -> Any:
        if not local_files_only:
            files_on_hub(name)  # fails at once without a network; the loader would retry for most of a minute
        return AutoTokenizer.from_pretrained(name, local_files_only=local_files_only)

    try:
        if is_folder:
            loaded = load(True)
        else:
            loaded, place = from_cache_or_hub(load)
    except LookupError as error:
        raise UsageError(_not_found(name, f"{place} (does not exist); {error}")) from error
    except Exception as error:  # any of OSError, ValueError and ImportError
        raise UsageError(_not_found(name, f"{place} ({str(error).strip().partition(chr(10))[0]})")) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(
            f'data.tokenizer: "{name}" has no fast version (tokenizer.json). Name one that has one, or use "train".'
        )
    end_of_text = _end_of_text(backend, loaded.eos_token)
    template = with_beginning(loaded.chat_template, loaded.bos_token)
    return Tokenizer(backend, end_of_text=end_of_text, origin=place, chat_template=template)


def _not_found(name: str, tried: str) -> str:
    return (
        f'data.tokenizer: "{name}" could not be loaded; tried {tried}. '
        'Give a folder that holds a tokenizer.json, a name on the hub while there is a network, or "train".'
    )


def _end_of_text(backend: tokenizers.Tokenizer, configured: str | None) -> str:
    for name in (configured, *KNOWN_END_OF_TEXT):
        if name is not None and backend.token_to_id(name) is not None:
            return name
    return END_OF_TEXT


def grouped(items: Iterable[T], size_of: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Group items, in order; a group is complete when their sizes reach the limit."""
    group: list[T] = []
    size = 0
    for item in items:
        group.append(item)
        size += size_of(item)
        if size >= limit:
            yield group
            group, size = [], 0
    if group:
        yield group


def split_segments(text: str, length: int = SEGMENT_CHARACTERS) -> Iterator[str]:
    """Divide a long text at line ends into segments of up to `length` characters (anywhere without a line end)."""
    start = 0
    while len(text) - start > length:
        window = text[start : start + length + 1]
        # The last suitable line end in the second half; the characters on both sides must be in the text.
        ends = [match.start() for match in SEGMENT_END.finditer(window, length // 2)]
        cut = ends[-1] if ends else length
        yield window[:cut]
        start += cut
    yield text[start:]


def _join(parts: list[Encoded]) -> Encoded:
    if len(parts) == 1:
        return parts[0]
    offsets = np.cumsum([0, *(part.num_bytes for part in parts)])
    starts = [part.byte_starts + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    return Encoded(np.concatenate([part.ids for part in parts]), np.concatenate(starts), int(offsets[-1]))


def _encoded_by_offsets(encoding: tokenizers.Encoding, text: str) -> Encoded:
    """Return byte starts from character offsets, for tokenizers that are not byte-level."""
    ids = np.array(encoding.ids, dtype=np.int32)  # [t]
    content = np.frombuffer(text.encode(), dtype=np.uint8)
    # Every byte that does not continue a character begins one; the position after the last is the end of the text.
    character_starts = np.append(np.flatnonzero((content & 0xC0) != 0x80), len(content))
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)[:, 0]  # [t]
    starts = np.maximum.accumulate(character_starts[offsets])
    # Text that a normaliser removed at the front belongs to the first token.
    starts[:1] = 0
    return Encoded(ids, starts, len(content))


def _token_bytes(backend: tokenizers.Tokenizer, vocabulary_size: int) -> NDArray[np.int64] | None:
    """Return the UTF-8 bytes of each token [vocabulary_size] of a byte-level tokenizer; None for any other."""
    # The library exposes a decoder's type only in its JSON form.
    decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder else {}
    if decoder.get("type") != "ByteLevel":
        return None
    lengths = np.zeros(vocabulary_size, dtype=np.int64)
    added = backend.get_added_tokens_decoder()
    for token, id in backend.get_vocab(with_added_tokens=True).items():
        # In the byte alphabet every character represents one byte; added tokens are plain text.
        lengths[id] = len(added[id].content.encode()) if id in added else len(token)
    return lengths


def _sample_segments(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """Yield the segments of a sample of the texts, drawn evenly by hash, of at most `max_bytes` together.

    A heap keeps the texts with the smallest hashes and drops the largest while it is too full. So the same texts are
    chosen for any order of the stream, and memory is bounded by `max_bytes`.
    """
    kept: list[tuple[int, int, str]] = []  # (minus the hash, number in the stream, text)
    total = 0
    for number, text in enumerate(texts):
        content = text.encode()
        digest = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
        heapq.heappush(kept, (-digest, number, text))
        total += len(content)
        while total > max_bytes and len(kept) > 1:
            total -= len(heapq.heappop(kept)[2].encode())
    for _, _, text in sorted(kept, key=lambda entry: entry[1]):
        yield from split_segments(text)
