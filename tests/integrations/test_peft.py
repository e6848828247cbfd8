"""PEFT trains adapters in the base of a RETRO-fit: they are read everywhere, saved, switched off and merged."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.integrations.exports import export, make
from tests.pretrained.bases import make_batch

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")


def logits(model, on):
    tokens, retrieved, mask = make_batch()
    given = {"neighbours": retrieved, "neighbours_mask": mask} if on else {}
    with torch.no_grad():
        return model(input_ids=tokens, **given).logits


def both(model):
    return logits(model, on=False), logits(model, on=True)


def train(model):
    tokens, retrieved, mask = make_batch()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.03)
    model.train()
    losses = []
    for _ in range(4):
        loss = model(input_ids=tokens, labels=tokens, neighbours=retrieved, neighbours_mask=mask).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["encoder", "inherit"])
def test_an_adapter_of_the_base_trains_merges_and_is_the_bases_without_retrieval(kind, tmp_path):
    folder = export(make(kind), tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(folder)
    before = both(model)
    config = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "r": 2, "lora_dropout": 0.1}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**config))
    assert all(map(torch.equal, both(adapted.eval()), before))
    train(adapted)
    after = both(adapted)
    assert not any(map(torch.equal, after, before))
    with adapted.disable_adapter():
        assert all(map(torch.equal, both(adapted), before))
    assert all(map(torch.equal, both(adapted), after))

    base = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), peft.LoraConfig(**config))
    adapter = {
        name.replace(".model.base.", "."): value for name, value in adapted.state_dict().items() if "lora" in name
    }
    assert not base.load_state_dict(adapter, strict=False).unexpected_keys
    assert torch.equal(logits(base.eval(), on=False), after[0])

    adapted.save_pretrained(tmp_path / "adapter")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")  # finds the base model by itself
    assert all(map(torch.equal, both(loaded), after))
    fresh = AutoModelForCausalLM.from_pretrained(folder)
    both(fresh)  # whatever it keeps of neighbours is of the base before the adapter
    merged = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").merge_and_unload()
    for one, other in zip(both(merged), after, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert all(map(torch.equal, both(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), both(merged)))


def test_the_reader_is_trained_beside_an_adapter(tmp_path):
    folder = export(make("encoder"), tmp_path / "exported")
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", r=2, modules_to_save=["retrieval"])
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    train(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    assert all(map(torch.equal, both(loaded.eval()), both(adapted)))
    torch.testing.assert_close(both(loaded.merge_and_unload()), both(adapted), rtol=0, atol=1e-4)
