"""Where a base comes from, what is refused, and that its weights are told from any others."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from retroflow.errors import DamagedDataError, RetroflowError, UsageError
from retroflow.pretrained.base_models import FAMILIES, find_base, fingerprint, load_base
from retroflow.pretrained.retrofit import FINGERPRINT, RetrofitModel
from tests.pretrained.bases import FAMILIES as TESTED
from tests.pretrained.bases import make_base, make_batch, make_options, make_retrofit

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def folder(tmp_path):
    make_base().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_row_of_the_table_is_tested():
    assert {family.removesuffix("_sequential") for family in TESTED} == FAMILIES.keys()


@torch.no_grad()
@pytest.mark.parametrize("family", TESTED)
def test_a_saved_base_is_loaded_as_it_was(family, tmp_path):
    base = make_base(family)
    base.save_pretrained(tmp_path)
    options = make_options(base=str(tmp_path))
    options.check()
    model = options.build().eval()
    tokens, _, _ = make_batch()
    assert torch.equal(model(tokens), AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits)
    assert torch.equal(model.base_fingerprint, fingerprint(base))


def test_weights_in_bfloat16_are_computed_with_in_float32(tmp_path):
    make_base().bfloat16().save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in load_base(str(tmp_path)).parameters()} == {torch.float32}


def test_the_meta_device_needs_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with torch.device("meta"):
        model = make_options(base=str(folder)).build()
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    with pytest.raises(RetroflowError, match="meta device"):
        model.state_dict()


def test_the_fingerprint_is_that_of_every_bit_however_the_files_are_cut(tmp_path):
    base = make_base()
    before = fingerprint(base)
    base.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(fingerprint(load_base(str(tmp_path))), before)
    with torch.no_grad():
        base.transformer.h[3].ln_1.bias[5] = 1e-30
    assert not torch.equal(fingerprint(base), before)


def test_a_folder_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match=r'model\.base: there is no folder "\./nowhere".*save_pretrained'):
        find_base("./nowhere")


def test_a_name_that_is_nowhere_says_where_was_looked(monkeypatch):
    def fail(name, **options):
        raise OSError("cache" if options["local_files_only"] else "network")

    monkeypatch.setattr("retroflow.pretrained.base_models.files_on_hub", lambda name: [])
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(UsageError, match=r'"someone/model" was not found.*folder.*cache.*hub.*network'):
        find_base("someone/model")


def test_a_repository_of_ggufs_alone_says_how_to_download_one(monkeypatch):
    def fail(name, **options):
        assert options["local_files_only"]
        raise OSError("not in the cache")

    names = ["README.md", "model-q8.gguf", "config.json", "model-q4.gguf"]
    monkeypatch.setattr("retroflow.pretrained.base_models.files_on_hub", lambda name: names)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    message = (
        r'model\.base: "some/model" on the Hugging Face hub holds GGUF files and no safetensors \(model-q4\.gguf, '
        r"model-q8\.gguf\)\. Run hf download some/model model-q4\.gguf and give the path that it prints\."
    )
    with pytest.raises(UsageError, match=message):
        find_base("some/model", weights=False)


def test_the_cache_comes_before_the_hub(monkeypatch, folder):
    asked = []

    def answer(name, **options):
        asked.append(options["local_files_only"])
        if options["local_files_only"]:
            return str(folder)
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
    assert find_base("someone/model") == folder and asked == [True]


def test_weights_of_a_family_that_cannot_be_used_are_not_fetched(monkeypatch, folder):
    change_config(folder, model_type="bloom")
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.append(options) or str(folder)
    )
    for refuse in (make_options(base="someone/model").check, make_options(base="someone/model").build):
        with pytest.raises(UsageError, match="cannot be RETRO-fitted"):
            refuse()
    assert [options["allow_patterns"] for options in asked] == [["config.json"]] * 2


def test_pickled_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UsageError, match=r"lacks model\.safetensors.*pickled weights.*refused"):
        load_base(str(folder))


@pytest.mark.parametrize("model_type", ["bert", "gpt_neo", "gpt_neox_japanese", "bloom", "t5"])
def test_another_family_is_refused_before_weights_are_read(folder, model_type):
    change_config(folder, model_type=model_type)
    with pytest.raises(
        UsageError, match=rf'"{model_type}", which cannot be RETRO-fitted.*gpt2.*gpt_neox.*llama.*qwen3_moe'
    ):
        make_options(base=str(folder)).check()


def test_code_of_a_repository_is_never_run(folder):
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    change_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})
    with pytest.raises(UsageError, match="code from elsewhere, which is never run"):
        make_options(base=str(folder)).build()


def test_a_layer_that_the_base_lacks_is_refused_before_weights_are_read(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"names layer 9.*layers 1 to 6"):
        make_options(base=str(folder), cca_layers=(2, 9)).check()


def test_sequences_longer_than_learned_positions_are_refused_before_weights_are_read(folder):
    (folder / "model.safetensors").unlink()
    make_options(base=str(folder)).check(sequence_length=64)
    with pytest.raises(UsageError, match=r"data.sequence_chunks makes sequences of 65 tokens; .* positions for 64\."):
        make_options(base=str(folder)).check(sequence_length=65)


@pytest.mark.parametrize("content", [b"", b"no json", b"[]"])
def test_a_damaged_config_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises((DamagedDataError, UsageError), match="config.json|model.base"):
        load_base(str(folder))


@pytest.mark.parametrize("changes", [{"n_layer": "six"}, {"n_embd": 15}, {"model_type": "gpt_neo", "num_layers": 5}])
def test_a_config_that_its_family_cannot_have_is_refused(folder, changes):
    change_config(folder, **changes)
    with pytest.raises((DamagedDataError, UsageError), match="config.json: cannot be read|model.base"):
        load_base(str(folder))


def test_damaged_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedDataError, match="cannot be loaded.*Copy the model again"):
        load_base(str(folder))


def test_missing_weights_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.2.mlp.c_fc.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DamagedDataError, match=r"lack transformer\.h\.2\.mlp\.c_fc\.weight \(1 in all\)"):
        load_base(str(folder))


@torch.no_grad()
def test_the_state_of_a_frozen_retrofit_is_what_it_trained_and_fits_no_other_base():
    model = make_retrofit()
    state = model.state_dict()
    assert {name.split(".")[0] for name in state} == {"retrieval", FINGERPRINT}
    tokens, retrieved, mask = make_batch()
    other = RetrofitModel(make_options(), make_base()).double().eval()
    assert not torch.equal(other(tokens, retrieved, mask), model(tokens, retrieved, mask))
    other.load_state_dict(state)
    assert torch.equal(other(tokens, retrieved, mask), model(tokens, retrieved, mask))

    changed = make_base()
    changed.lm_head.weight[0, 0] += 1
    with pytest.raises(UsageError, match=r"model\.base.*has other weights.*Give the base they were trained on"):
        RetrofitModel(make_options(), changed).double().load_state_dict(state)


@torch.no_grad()
def test_the_state_of_an_unfrozen_retrofit_is_whole():
    model = make_retrofit(unfreeze=True)
    model.base.lm_head.weight[0, 0] += 1
    other = make_retrofit(unfreeze=True)
    other.load_state_dict(model.state_dict())
    tokens, retrieved, mask = make_batch()
    assert torch.equal(other(tokens, retrieved, mask), model(tokens, retrieved, mask))


def test_a_base_with_narrow_embeddings_is_refused():
    with pytest.raises(UsageError, match=r"model\.base.*embeds tokens with 8 features and computes with 16"):
        make_retrofit(base=make_base("opt", word_embed_proj_dim=8))


def test_an_empty_base_is_refused():
    with pytest.raises(UsageError, match='model.base is ""; allowed: text that is not empty.'):
        make_options(base="")
