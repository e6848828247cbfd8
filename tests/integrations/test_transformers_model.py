"""Stock transformers opens our folders, generates with them in every way, and saves them."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from retroflow.generation import GenerationOptions, generate
from retroflow.generation.exported import load_exported
from tests.generation.small import HashRetriever
from tests.integrations.exports import KINDS, TOKENIZER, export, make
from tests.pretrained.bases import CHUNK, make_batch

pytestmark = pytest.mark.filterwarnings("ignore")


class Letters(HashRetriever):
    """A retriever for the larger vocabulary."""

    def answer(self, queries, num_neighbours):
        return super().answer([[token % 256 for token in query] for query in queries], num_neighbours)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: export(make(kind), tmp_path_factory.mktemp("exports") / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def double(folders):
    return {kind: AutoModelForCausalLM.from_pretrained(folder, dtype="float64") for kind, folder in folders.items()}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_auto_classes_open_an_export_and_save_it_to_the_bit(folders, kind, tmp_path):
    own = load_exported(folders[kind]).model
    tokens, retrieved, mask = make_batch()
    wanted = own(tokens), own(tokens, retrieved, mask)
    config = AutoConfig.from_pretrained(folders[kind])
    assert (config.model_type, config.chunk_length, config.vocab_size) == ("retroflow", CHUNK, wanted[0].shape[-1])
    assert config.num_hidden_layers == own.config.num_layers and config.hidden_size == own.config.width
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    assert tokenizer("A line.\n  b").input_ids == TOKENIZER.encode("A line.\n  b").ids.tolist()
    model = AutoModelForCausalLM.from_pretrained(folders[kind])
    assert not model.training and model.generation_config.eos_token_id == TOKENIZER.end_of_text
    tokenizer.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved")  # again, over the first
    for one in (model, AutoModelForCausalLM.from_pretrained(tmp_path / "saved")):
        assert torch.equal(one(tokens).logits, wanted[0])
        assert torch.equal(one(tokens, neighbours=retrieved, neighbours_mask=mask).logits, wanted[1])
    assert torch.equal(load_exported(tmp_path / "saved").model(tokens), wanted[0])


MODES = {
    "greedy": {},
    "sampled": {"do_sample": True, "top_k": 20},
    "beams": {"num_beams": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_a_cache_is_generation_without(double, kind, mode):
    model, options = double[kind], MODES[mode]
    uncached = {name: value for name, value in options.items() if "lookup" not in name} | {"use_cache": False}
    tokens, retrieved, mask = make_batch(1 if mode == "prompt lookup" else 2)
    tokens[:, 7:13] = tokens[:, 1:7]  # something to look up
    padded = torch.ones_like(tokens)
    padded[0, :3] = 0
    read = [{}, {"neighbours": retrieved, "neighbours_mask": mask}, {"database": Letters(CHUNK)}]
    for reading in read:
        results = []
        for way in (options, uncached):
            torch.manual_seed(0)
            results.append(
                model.generate(tokens, attention_mask=padded, max_new_tokens=14, eos_token_id=None, **reading, **way)
            )
        assert torch.equal(*results)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_live_retrieval_gives_the_tokens_and_sources_of_our_own_engine(double, kind):
    model, prompts = double[kind], make_batch(2, 2 * CHUNK)[0].clamp(min=1)
    options = GenerationOptions(max_new_tokens=9, stop_at_end_of_text=False)
    wanted = generate(model.model, TOKENIZER, prompts.tolist(), retriever=Letters(CHUNK), options=options)
    output = model.generate(
        prompts, database=Letters(CHUNK), max_new_tokens=9, eos_token_id=None, return_dict_in_generate=True
    )
    for row, answer in enumerate(wanted):
        assert output.sequences[row, 2 * CHUNK :].tolist() == list(answer.tokens)
        assert [(one.end, one.sources) for one in output.past_key_values.lookups[row]] == [
            (one.end, one.sources) for one in answer.retrievals
        ]
