"""A saved RETRO-fit comes back with every bit, wherever its folder is moved, and its base is a model of its own."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from retroflow.errors import DamagedDataError, UsageError
from retroflow.model.retro import Retro
from retroflow.pretrained.retrofit import RetrofitModel
from tests.pretrained.bases import FAMILIES, make_base, make_batch, make_options, make_retrofit

pytestmark = pytest.mark.filterwarnings("ignore")


@torch.no_grad()
@pytest.mark.parametrize("unfreeze", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_gives_every_bit_after_it_was_moved(family, unfreeze, tmp_path):
    model = make_retrofit(family, unfreeze=unfreeze, smear=True, dtype=torch.float32)
    batch = make_batch()
    wanted = model(*batch)
    model.save_pretrained(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    loaded = RetrofitModel.from_pretrained(tmp_path / "there")
    assert not loaded.training
    assert all(torch.equal(loaded.get_parameter(name), value) for name, value in model.named_parameters())
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "there" / "base", dtype=torch.float32)
    assert all(torch.equal(base.get_parameter(name), value) for name, value in model.base.named_parameters())
    # The last bit of a logit depends on where in memory a weight of one row lies (Qwen2-MoE has one).
    torch.testing.assert_close(loaded(*batch), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(base(batch[0]).logits, model.base(batch[0]).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_python_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_retrofit(dtype=torch.float32).save_pretrained("my-model")
    page = (Path(__file__).parents[2] / "docs" / "retrofit.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    names = dict(zip(("tokens", "retrieved", "retrieved_mask"), make_batch(), strict=True))
    exec(block, names)
    assert torch.equal(names["logits"], names["model"](names["tokens"]))


@torch.no_grad()
def test_a_frozen_base_can_stay_where_it_is(tmp_path):
    make_base().save_pretrained(tmp_path / "base")
    model = make_options(base=str(tmp_path / "base")).build().eval()
    model.save_without_base(tmp_path / "fit")
    assert {path.name for path in (tmp_path / "fit").iterdir()} == {"config.json", "model.safetensors", "SHA256SUMS"}
    batch = make_batch()
    assert torch.equal(RetrofitModel.from_pretrained(tmp_path / "fit")(*batch), model(*batch))
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UsageError, match=r"model\.base: there is no folder"):
        RetrofitModel.from_pretrained(tmp_path / "fit")


def test_a_trained_base_cannot_be_left_out(tmp_path):
    with pytest.raises(UsageError, match=r"was trained \(model\.unfreeze\).*write it whole"):
        make_retrofit(unfreeze=True).save_without_base(tmp_path / "fit")
    assert not (tmp_path / "fit").exists()


def test_a_model_without_a_base_has_none_to_leave_out(tmp_path):
    model = Retro(make_retrofit().config)
    with pytest.raises(UsageError, match=r"a Retro has no pretrained base that could be left out; write it whole"):
        model.save_without_base(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        make_retrofit().save_pretrained(tmp_path)


def test_another_base_in_the_folder_is_refused(tmp_path):
    make_retrofit().float().save_pretrained(tmp_path / "fit")
    other = make_base()
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    other.save_pretrained(tmp_path / "fit" / "base")
    with pytest.raises(UsageError, match="has other weights"):
        RetrofitModel.from_pretrained(tmp_path / "fit")


def test_damaged_weights_and_other_models_are_refused(tmp_path):
    make_retrofit().save_pretrained(tmp_path / "fit")
    config = tmp_path / "fit" / "config.json"
    values = json.loads(config.read_text())
    assert values["model"] == "retrofit" and values["base_config"]["model_type"] == "gpt2"
    assert values["options"]["base"] == "base" and values["options"]["unfreeze"] is False
    with pytest.raises(UsageError, match='holds a model "retrofit", not "retro"'):
        Retro.from_pretrained(tmp_path / "fit")
    weights = tmp_path / "fit" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedDataError, match="its bytes are not those in SHA256SUMS"):
        RetrofitModel.from_pretrained(tmp_path / "fit")
