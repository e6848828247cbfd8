"""A model as a folder: what is written is read back to the bit, what is not what was written is refused."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from retroflow.errors import DamagedDataError, RetroflowError, UsageError
from retroflow.model.config import RetroConfig
from retroflow.model.pretrained import (
    CHECKSUMS_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    load_weights,
    make_config,
    save_pretrained,
    shared_weights,
    write_checksums,
)
from retroflow.model.retro import Retro
from retroflow.store import atomic

CONFIG = RetroConfig(
    vocabulary_size=23, chunk_length=4, width=8, num_layers=2, num_heads=2, head_width=4, cca_layers=(2,),
    encoder_width=8, encoder_layers=1, encoder_heads=2, dropout=0.1,
)  # fmt: skip
AIDS = {
    "smear": True,
    "next_token_values": True,
    "share_encoder_embeddings": True,
    "copy_initialisation": True,
    "cca_scale": 5.0,
}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(3)
    Retro(CONFIG).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_config(folder, change, *, whole=False):
    """Change config.json, or the options in it, as a person would, who then deletes the checksums."""
    values = json.loads((folder / CONFIG_FILE).read_text())
    change(values if whole else values["options"])
    (folder / CONFIG_FILE).write_text(json.dumps(values))
    (folder / CHECKSUMS_FILE).unlink()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        AIDS,
        {"tie_embeddings": False},
        {"cca_layers": (), "encoder_cross_attention_layers": ()},
        {"positions": "relative"},
    ],
)
def test_a_loaded_model_is_the_saved_one_to_the_bit(tmp_path, changes):
    torch.manual_seed(1)
    model = Retro(dataclasses.replace(CONFIG, **changes))
    model.save_pretrained(str(tmp_path / "deep" / "er"))
    loaded = Retro.from_pretrained(tmp_path / "deep" / "er")
    assert loaded.config == model.config and not loaded.training
    for (name, value), (other, again) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other and torch.equal(value, again)
    tokens, retrieved = torch.randint(23, (2, 9)), torch.randint(23, (2, 2, 2, 8))
    assert torch.equal(model.eval()(tokens, retrieved), loaded(tokens, retrieved))


def test_the_folder_is_what_sha256sum_and_others_can_read(folder):
    assert sorted(path.name for path in folder.iterdir()) == [CHECKSUMS_FILE, CONFIG_FILE, WEIGHTS_FILE]
    if sys.platform == "linux":
        subprocess.run(["sha256sum", "-c", "--quiet", CHECKSUMS_FILE], cwd=folder, check=True, timeout=60)
    values = json.loads((folder / CONFIG_FILE).read_text())
    assert values["model"] == "retro" and values["options"]["cca_layers"] == [2]
    assert (values["model_type"], values["format_version"]) == ("retroflow", 2)
    assert {path.stat().st_mode for path in folder.iterdir()} == {(folder / CONFIG_FILE).stat().st_mode}


def test_shared_weights_are_stored_once_and_shared_again(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight

    model = Tied()
    assert shared_weights(model) == {"two.weight": "one.weight"}
    save_pretrained(tmp_path / "tied", name="tied", config=CONFIG, model=model)
    with safe_open(tmp_path / "tied" / WEIGHTS_FILE, framework="pt") as file:
        assert sorted(file.keys()) == ["one.bias", "one.weight", "two.bias"]
    again = load_weights(Tied(), tmp_path / "tied")
    assert torch.equal(again.two.weight, model.one.weight) and again.two.weight is again.one.weight


def test_other_dtypes_are_kept_on_disk_and_loaded_in_float32(tmp_path):
    model = Retro(CONFIG).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    assert {value.dtype for value in load_file(tmp_path / "half" / WEIGHTS_FILE).values()} == {torch.bfloat16}
    loaded = Retro.from_pretrained(tmp_path / "half")
    assert loaded.norm.weight.dtype == torch.float32
    assert torch.equal(loaded.embedding.weight, model.embedding.weight.float())


def test_loading_draws_no_random_numbers(folder):
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    Retro.from_pretrained(folder)
    assert torch.equal(torch.rand(3), expected)


def test_every_flipped_byte_is_found(folder):
    """safetensors notices damage of its header only; a bit of a weight would pass."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        content = (folder / name).read_bytes()
        for position in {*range(0, len(content), max(1, len(content) // 60)), len(content) - 1}:
            (folder / name).write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
            with pytest.raises(DamagedDataError, match=f"{name}.*bytes are not those in SHA256SUMS") as caught:
                Retro.from_pretrained(folder)
            assert caught.value.exit_code == 3
        (folder / name).write_bytes(content)
    Retro.from_pretrained(folder)


def test_damaged_weights_without_checksums_are_refused_too(folder):
    (folder / CHECKSUMS_FILE).unlink()
    content = (folder / WEIGHTS_FILE).read_bytes()
    for damaged in (b"", content[:6], content[:-4], b"\xff" * 64, pickle.dumps({"a": 1}), content[:8] + b"{" * 40):
        (folder / WEIGHTS_FILE).write_bytes(damaged)
        with pytest.raises(DamagedDataError, match="not weights that can be read"):
            Retro.from_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda f: (f / WEIGHTS_FILE).unlink(), DamagedDataError, "model.safetensors is missing"),
        (lambda f: (f / CONFIG_FILE).unlink(), UsageError, "not a model folder .it has no config.json."),
        (lambda f: change_config(f, lambda v: v.update(widht=9)), UsageError, r'widht is not a known key. Did you mean "width"\?'),
        (lambda f: change_config(f, lambda v: v.pop("chunk_length")), UsageError, "chunk_length is missing"),
        (lambda f: change_config(f, lambda v: v.update(width="8")), UsageError, 'width is "8" .text.; allowed: a whole number from 1 to 1048576. Remove the quotes.'),
        (lambda f: change_config(f, lambda v: v.update(width=True)), UsageError, "width is true .a truth value.; allowed: a whole number"),
        (lambda f: change_config(f, lambda v: v.update(dropout="x")), UsageError, 'dropout is "x" .text.; allowed: a number from 0 to below 1.'),
        (lambda f: change_config(f, lambda v: v.update(smear=1)), UsageError, "smear is 1 .a whole number.; allowed: true or false."),
        (lambda f: change_config(f, lambda v: v.update(cca_layers=2)), UsageError, "cca_layers is 2 "),
        (lambda f: change_config(f, lambda v: v.update(cca_layers=[2.5])), UsageError, r"cca_layers\[0\] is 2.5"),
        (lambda f: change_config(f, lambda v: v.update(positions="x")), UsageError, 'positions is "x" .text.; allowed: "rotary" or "relative".'),
        (lambda f: change_config(f, lambda v: v.update(cca_layers=[7])), UsageError, "config.json.*names layer 7"),
        (lambda f: change_config(f, lambda v: v.update(width=12)), DamagedDataError, r"has shape \[.*\], and config.json asks for \[.*12"),
        (lambda f: change_config(f, lambda v: v.update(num_layers=3)), DamagedDataError, '"blocks.2.* is missing .* missing, 0 unknown'),
        (lambda f: change_config(f, lambda v: v.update(cca_layers=[], encoder_cross_attention_layers=[])), DamagedDataError, "is not known .0 missing"),
        (lambda f: change_config(f, lambda v: v.update(format_version=1), whole=True), UsageError, "format_version 1 given; this retroflow reads 2"),
        (lambda f: change_config(f, lambda v: v.update(model="other"), whole=True), UsageError, 'holds a model "other", not "retro"'),
        (lambda f: change_config(f, lambda v: v.pop("model"), whole=True), DamagedDataError, "not the configuration of a retroflow model"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_a_model_is_refused_in_words(folder, make, error, message):
    make(folder)
    with pytest.raises(error, match=message) as caught:
        Retro.from_pretrained(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"model": "retro"}'])
def test_a_configuration_that_is_no_configuration_is_refused(folder, content):
    (folder / CONFIG_FILE).write_bytes(content)
    (folder / CHECKSUMS_FILE).unlink()
    with pytest.raises(DamagedDataError, match="not the configuration of a retroflow model"):
        Retro.from_pretrained(folder)


def test_all_wrong_keys_are_told_at_once(folder):
    with pytest.raises(UsageError) as caught:
        make_config(RetroConfig, {"vocabulary_size": 1.5, "widht": 3}, where=folder)
    assert all(
        part in str(caught.value) for part in ("widht is not", "chunk_length is missing", "vocabulary_size is 1.5")
    )


def test_extra_weights_are_refused(folder):
    weights = load_file(folder / WEIGHTS_FILE)
    save_file(weights | {"more": torch.zeros(1)}, folder / WEIGHTS_FILE)
    write_checksums(folder)
    with pytest.raises(DamagedDataError, match=r'"more" is not known \(0 missing, 1 unknown\)'):
        Retro.from_pretrained(folder)


def test_a_used_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("x")
    with pytest.raises(UsageError, match="is not empty; give a new or an empty folder"):
        Retro(CONFIG).save_pretrained(tmp_path / "used")
    with pytest.raises(UsageError, match="is a file"):
        Retro(CONFIG).save_pretrained(tmp_path / "used" / "mine")
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    Retro(CONFIG).save_pretrained(tmp_path / "empty")


@pytest.mark.parametrize("nth", range(1, 12))
def test_a_write_that_fails_anywhere_leaves_nothing(tmp_path, monkeypatch, nth):
    """Whole or not at all: the n-th fsync or rename fails as on a full disk."""
    calls = 0

    def failing(real):
        def call(*arguments):
            nonlocal calls
            calls += 1
            if calls == nth:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        return call

    monkeypatch.setattr(atomic.os, "fsync", failing(os.fsync))
    monkeypatch.setattr(atomic.os, "replace", failing(os.replace))
    target = tmp_path / "model"
    with pytest.raises(RetroflowError, match="cannot be written .No space left on device., and nothing is left of it"):
        Retro(CONFIG).save_pretrained(target)
    assert list(tmp_path.iterdir()) == []


def test_loading_unpickles_and_runs_nothing(folder):
    program = (
        "import sys\n"
        "def hook(event, arguments):\n"
        "    if event in ('pickle.find_class', 'subprocess.Popen', 'socket.connect', 'os.system'):\n"
        "        raise SystemExit(event)\n"
        "from retroflow.model.retro import Retro\n"
        "import safetensors.torch\n"
        "sys.addaudithook(hook)\n"
        "Retro.from_pretrained(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, timeout=120)
