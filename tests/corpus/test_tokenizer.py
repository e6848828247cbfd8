"""The tokenizer: exact round trips, byte positions, loading, and the same result every time."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from retroflow.corpus import tokenizer as module
from retroflow.corpus.documents import LEAST_VOCABULARY
from retroflow.corpus.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer, split_segments, train_tokenizer
from retroflow.errors import DamagedDataError, UsageError

TEXTS = [f"def function_{i}(self, value):\n    return self.value + {i}\n" for i in range(50)]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(TEXTS, 320)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word-piece tokenizer that lower-cases, drops accents, truncates and pads, and has no end-of-text token."""
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "the", "cat", "sat", "##s", ".", "e", "##e", "\u732b"]
    backend = tokenizers.Tokenizer(models.WordPiece(vocab={word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_truncation(4)
    backend.enable_padding(pad_id=1, pad_token="[PAD]", length=4)
    folder = tmp_path_factory.mktemp("bert")
    backend.save(str(folder / "tokenizer.json"))
    return folder


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=100))
@example("\x00 nul\x00")
@example("line\r\nends\r\n\n\r")
@example(f"a {END_OF_TEXT} in the text")
@example("\U0001f600\u200d\U0001f468 e\u0301 \u00e9 \uffff \u2028")
@example("   \t\n   leading and trailing   ")
@example("")
def test_any_text_round_trips_exactly(trained: Tokenizer, text: str) -> None:
    encoded = trained.encode(text)
    assert trained.decode(encoded.ids) == text
    assert trained.end_of_text not in encoded.ids
    assert encoded.num_bytes == len(text.encode())


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=60))
def test_byte_starts_say_where_each_token_begins(trained: Tokenizer, text: str) -> None:
    encoded = trained.encode(text)
    content = text.encode()
    ends = [*encoded.byte_starts[1:], encoded.num_bytes][: len(encoded.ids)]
    for id, start, end in zip(encoded.ids, encoded.byte_starts, ends, strict=True):
        piece = content[start:end]
        assert trained.decode([id]) == piece.decode("utf-8", "replace")


def test_types_and_ranges(trained: Tokenizer) -> None:
    encoded = trained.encode(TEXTS[0])
    assert (encoded.ids.dtype, encoded.byte_starts.dtype) == (np.int32, np.int64)
    assert trained.vocabulary_size == 320
    assert encoded.ids.min() >= 0 and encoded.ids.max() < 320
    assert trained.decode([trained.end_of_text]) == END_OF_TEXT


def test_a_batch_is_encoded_and_decoded_as_its_texts_are(trained: Tokenizer) -> None:
    texts = ["", "one", TEXTS[3], "\u732b", ""]
    batch = trained.encode_batch(texts)
    for encoded, text in zip(batch, texts, strict=True):
        alone = trained.encode(text)
        assert np.array_equal(encoded.ids, alone.ids) and np.array_equal(encoded.byte_starts, alone.byte_starts)
    assert trained.decode_batch([encoded.ids for encoded in batch]) == texts
    assert trained.encode_batch([]) == [] and trained.decode_batch([]) == []


def test_long_texts_are_cut_where_no_token_spans_the_cut(trained: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(TEXTS)
    whole = trained.encode(text)
    monkeypatch.setattr(module, "split_segments", lambda text: split_segments(text, 150))
    assert len(list(split_segments(text, 150))) > 20
    in_segments = trained.encode(text)
    assert np.array_equal(in_segments.ids, whole.ids)
    assert np.array_equal(in_segments.byte_starts, whole.byte_starts)
    assert in_segments.num_bytes == whole.num_bytes


def test_a_long_text_without_a_good_place_still_round_trips(
    trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\u732b\n\n x" * 300
    monkeypatch.setattr(module, "split_segments", lambda text: split_segments(text, 100))
    encoded = trained.encode(text)
    assert trained.decode(encoded.ids) == text and encoded.num_bytes == len(text.encode())


@given(st.text(alphabet="ab\n \u00e9", max_size=300), st.integers(2, 40))
def test_segments_are_the_text(text: str, length: int) -> None:
    segments = list(split_segments(text, length))
    assert "".join(segments) == text and all(len(segment) <= length for segment in segments)


def test_training_twice_gives_the_same_tokenizer_on_any_number_of_threads() -> None:
    program = (
        "from retroflow.corpus.tokenizer import train_tokenizer\n"
        "texts = [f'value_{i} = {i * 7919 % 1000} + other_{i % 9}' for i in range(300)]\n"
        "print(train_tokenizer(texts, 400).fingerprint())"
    )
    environments = ({"TOKENIZERS_PARALLELISM": "false"}, {"RAYON_NUM_THREADS": "3", "PYTHONHASHSEED": "7"})
    printed = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, **extra}, capture_output=True, check=True, text=True
        ).stdout
        for extra in environments
    }
    assert len(printed) == 1


UNBROKEN = ("a" * 5000, "\U0001f600" * 3000, "ACGT" * 900, "\u732b" * 2000, " " * 4000 + "x", "7" * 3000, "=" * 600)


@pytest.mark.parametrize("text", UNBROKEN, ids=lambda text: f"{text[0]!r}")
def test_no_word_is_too_long_for_learning_and_long_ones_round_trip(text: str) -> None:
    """Learning from one word of a million letters took minutes: the time of a merge grows with the longest word."""
    tokenizer = train_tokenizer([text], 300)
    words = [word for word, _ in tokenizer._backend.pre_tokenizer.pre_tokenize_str(text)]
    letters = max(len(word) // len(text[0].encode()) for word in words)
    assert letters <= module.WORD_CHARACTERS + 1  # one space before the letters
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_text_of_words_gives_the_tokenizer_that_words_without_a_limit_give(trained: Tokenizer) -> None:
    texts = [
        *TEXTS,
        "It's we'll  tab\t\tlines\n\n\n  x  ",
        "na\u00efve \u732b\u304c 12,345.67 !!! \u0e44\u0e17\u0e22 " * 3,
    ]

    def without_a_limit() -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=400, special_tokens=[END_OF_TEXT], initial_alphabet=module.BYTE_ALPHABET, show_progress=False
        )
        backend.train_from_iterator(texts, trainer)
        return backend

    ours, theirs = train_tokenizer(texts, 400)._backend, without_a_limit()
    assert json.loads(ours.to_str())["model"] == json.loads(theirs.to_str())["model"]
    for text in texts:
        assert ours.encode(text).ids == theirs.encode(text).ids


def test_the_sample_is_capped_even_and_independent_of_order() -> None:
    texts = [f"{i:04d}" * 25 for i in range(200)]
    sample = list(module._sample_segments(texts, 5000))
    assert 4900 <= sum(map(len, sample)) <= 5000
    assert set(sample) == set(module._sample_segments(texts[::-1], 5000))
    assert {text[0:2] for text in sample} == {"00", "01"}
    assert list(module._sample_segments(texts, 10**6)) == texts


def test_a_vocabulary_too_small_is_refused() -> None:
    with pytest.raises(UsageError, match=r"data\.vocabulary_size is 256; allowed: a whole number of at least 257"):
        train_tokenizer(TEXTS, 256)


def test_a_small_corpus_gives_a_smaller_vocabulary() -> None:
    assert LEAST_VOCABULARY <= train_tokenizer(["ab"], 8192).vocabulary_size < 300
    assert train_tokenizer([], 8192).vocabulary_size == LEAST_VOCABULARY
    assert train_tokenizer(TEXTS, LEAST_VOCABULARY).vocabulary_size == LEAST_VOCABULARY


def test_saved_and_loaded_it_is_the_same(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(str(place))
        assert loaded.fingerprint() == trained.fingerprint()
        assert (loaded.end_of_text, loaded.vocabulary_size) == (trained.end_of_text, trained.vocabulary_size)
        assert np.array_equal(loaded.encode(TEXTS[1]).ids, trained.encode(TEXTS[1]).ids)
    assert loaded.origin == str(tmp_path / "tokenizer.json")


def test_a_chat_template_is_kept_and_is_no_part_of_the_fingerprint(trained: Tokenizer, tmp_path: Path) -> None:
    template = "{{ messages[0].content }}<|endoftext|>"
    for folder in (tmp_path / "config", tmp_path / "file"):
        folder.mkdir()
        trained.save(folder)
    config = json.loads((tmp_path / "config" / "tokenizer_config.json").read_text())
    (tmp_path / "config" / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    (tmp_path / "file" / "chat_template.jinja").write_text(template)
    for folder in (tmp_path / "config", tmp_path / "file"):
        loaded = load_tokenizer(str(folder))
        assert loaded.chat_template == pickle.loads(pickle.dumps(loaded)).chat_template == template
        assert loaded.fingerprint() == trained.fingerprint() and trained.chat_template is None
        (folder / "again").mkdir()
        loaded.save(folder / "again")
        assert load_tokenizer(str(folder / "again")).chat_template == template
        assert loaded.encode_with_specials("a<|endoftext|>") == [*loaded.encode("a").ids, loaded.end_of_text]
    said = config | {"chat_template": "{{ bos_token }}x", "bos_token": {"content": "<|endoftext|>"}}
    (tmp_path / "config" / "tokenizer_config.json").write_text(json.dumps(said))
    knowing = load_tokenizer(str(tmp_path / "config")).chat_template
    assert jinja2.Template(knowing).render(bos_token="") == "<|endoftext|>x"
    assert "<|endoftext|>" in trained.special_tokens


def test_copies_and_pickles_keep_special_tokens_apart_from_text(trained: Tokenizer) -> None:
    for same in (copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
        assert same.fingerprint() == trained.fingerprint()
        assert same.end_of_text not in same.encode(END_OF_TEXT).ids


def test_the_fingerprint_follows_the_content(trained: Tokenizer) -> None:
    assert trained.fingerprint() != train_tokenizer(TEXTS, 321).fingerprint()
    assert len(trained.fingerprint()) == 64


def test_a_tokenizer_without_end_of_text_gets_one_and_neither_truncates_nor_pads(bert: Path) -> None:
    loaded = load_tokenizer(str(bert))
    assert (loaded.end_of_text, loaded.vocabulary_size, loaded.end_of_text_token) == (12, 13, END_OF_TEXT)
    assert len(loaded.encode("the cat sat the cat sat .").ids) == 7
    assert len(loaded.encode("the").ids) == 1


def test_the_configured_end_of_text_token_is_taken(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((bert / "tokenizer.json").read_bytes())
    for written in ("[SEP]", {"content": "[SEP]", "__type": "AddedToken"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": written}))
        assert load_tokenizer(str(tmp_path)).end_of_text == 3


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="the cats.\u00e9E\u732b \U0001f600\n", max_size=60))
def test_bytes_add_up_where_tokens_do_not_spell_them(bert: Path, text: str) -> None:
    encoded = load_tokenizer(str(bert)).encode(text)
    assert encoded.num_bytes == len(text.encode())
    assert (np.diff(encoded.byte_starts) >= 0).all() and (encoded.byte_starts <= encoded.num_bytes).all()
    assert len(encoded.ids) == 0 or encoded.byte_starts[0] == 0


def test_byte_starts_by_offsets_point_at_the_words(bert: Path) -> None:
    encoded = load_tokenizer(str(bert)).encode("\u732b the \u00e9 cats")
    assert encoded.byte_starts.tolist() == [0, 4, 8, 11, 14]


def test_an_added_token_that_swallows_spaces_still_adds_up(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_tokens([tokenizers.AddedToken("<tab>", lstrip=True, rstrip=True)])
    encoded = Tokenizer(backend, origin="test").encode("value   <tab>  value")
    assert encoded.num_bytes == 20 and (np.diff(encoded.byte_starts) >= 0).all()


def test_a_damaged_tokenizer_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DamagedDataError, match=r"data\.tokenizer: .*tokenizer\.json is not a tokenizer"):
        load_tokenizer(str(tmp_path))


def test_a_folder_that_does_not_exist_is_named() -> None:
    with pytest.raises(UsageError, match=r'data\.tokenizer: "\./no/such/folder" could not be loaded; tried the folder'):
        load_tokenizer("./no/such/folder")


@pytest.mark.parametrize("network", [False, True])
def test_a_name_that_cannot_be_reached_says_all_that_was_tried(monkeypatch: pytest.MonkeyPatch, network: bool) -> None:
    from huggingface_hub import HfApi
    from transformers import AutoTokenizer

    asked = []

    def load(name: str, *, local_files_only: bool) -> None:
        asked.append(local_files_only)
        raise OSError("no such tokenizer\nmore lines")

    def look_up(api: HfApi, name: str, *, timeout: float) -> Any:
        if not network:
            raise ConnectionError("no network")
        return SimpleNamespace(siblings=[])

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load)
    monkeypatch.setattr(HfApi, "model_info", look_up)
    with pytest.raises(UsageError) as caught:
        load_tokenizer("nobody/nothing")
    message = str(caught.value)
    assert asked == ([True, False] if network else [True])
    reason = "OSError: no such tokenizer more lines" if network else "ConnectionError: no network"
    for part in ("the folder", "(does not exist)", "Hugging Face cache", f"hub: {reason}"):
        assert part in message
    assert '"train"' in message


def test_a_fast_tokenizer_of_transformers_is_taken_over(monkeypatch: pytest.MonkeyPatch, bert: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_file=str(bert / "tokenizer.json"), eos_token="[SEP]")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name, local_files_only: fast)
    loaded = load_tokenizer("some/name")
    assert loaded.end_of_text == 3 and "cache" in loaded.origin


def test_a_tokenizer_without_a_fast_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name, local_files_only: object())
    with pytest.raises(UsageError, match="has no fast version"):
        load_tokenizer("some/name")
