"""Stock transformers opens our folders, generates with them in every way, and saves them."""

import copy
import importlib.util
import random
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    Trainer,
    TrainingArguments,
    pipeline,
)

import retroflow
from retroflow.errors import InvalidShapeError, UsageError
from retroflow.generation import GenerationOptions, generate
from retroflow.generation.exported import load_exported
from retroflow.integrations import transformers_registration
from retroflow.integrations.transformers_cache import RetroflowCache
from retroflow.integrations.transformers_model import RetroflowForCausalLM
from retroflow.integrations.transformers_states import watching
from tests.database.small import build, documents_of
from tests.generation.small import HashRetriever
from tests.integrations.exports import KINDS, TOKENIZER, export, make
from tests.pretrained.bases import CHUNK, make_base, make_batch

pytestmark = pytest.mark.filterwarnings("ignore")


class Letters(HashRetriever):
    """A retriever for the larger vocabulary."""

    def answer(self, queries, num_neighbours):
        return super().answer([[token % 256 for token in query] for query in queries], num_neighbours)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: export(make(kind), tmp_path_factory.mktemp("exports") / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def double(folders, tmp_path_factory):
    sliding = export(make("sliding"), tmp_path_factory.mktemp("exports") / "sliding")  # a window of 9 tokens
    named = folders | {"sliding": sliding}
    return {kind: AutoModelForCausalLM.from_pretrained(folder, dtype="float64") for kind, folder in named.items()}


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
    model.double().save_pretrained(tmp_path / "double")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "double").dtype == torch.float64


MODES = (
    {},
    {"do_sample": True, "top_k": 20},
    {"num_beams": 3, "num_return_sequences": 2},
    {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2},
)


@torch.no_grad()
def check_a_random_case(models, seed):
    """Model, mode, retrieval step, ragged prompts and what they read, all drawn from one seed."""
    draw = random.Random(seed)
    model, options = models[draw.choice(sorted(models))], draw.choice(MODES)
    looks_up = "prompt_lookup_num_tokens" in options
    step = model.config.retrieval_step = draw.choice([1, CHUNK - 1, CHUNK])
    length = draw.randint(1, 20)
    tokens, retrieved, mask = make_batch(1 if looks_up else draw.randint(1, 3), length, seed=seed, step=step)
    tokens[:, length // 2 :] = tokens[:, : length - length // 2].clone()  # something to look up
    padding = torch.ones_like(tokens)
    for row in padding:
        row[: draw.randint(0, length - 1)] = 0
    given = {"neighbours": retrieved, "neighbours_mask": mask}
    reading = draw.choice([{}, given, {"database": Letters(CHUNK)}])
    reading |= {"attention_mask": padding, "max_new_tokens": draw.randint(1, 12), "eos_token_id": None}
    answers = []
    for way in (options, {"use_cache": False} if looks_up else options | {"use_cache": False}):
        torch.manual_seed(seed)
        scored = {"output_logits": True, "return_dict_in_generate": True}
        answers.append(model.generate(tokens, **reading, **way, **scored))
    model.config.retrieval_step = None
    assert not any(each.isnan().any() for answer in answers for each in answer.logits)
    assert torch.equal(*(answer.sequences for answer in answers))


@pytest.mark.parametrize("first", range(0, 24, 8))
def test_generation_with_a_cache_is_generation_without(double, first):
    for seed in range(first, first + 8):
        check_a_random_case(double, seed)


@pytest.mark.slow
def test_a_thousand_cases_are_generated_alike(double):
    for seed in range(1000, 2000):
        check_a_random_case(double, seed)


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


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_can_be_replaced_and_loading_tells_what_was_missing(folders, kind):
    model, info = AutoModelForCausalLM.from_pretrained(folders[kind], output_loading_info=True)
    assert not any(info.values()) and model.resize_token_embeddings() is model.get_input_embeddings()
    other = copy.deepcopy(model.get_input_embeddings())
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True}, {"prompt_lookup_num_tokens": 2}])
def test_retroflow_generate_is_generate_with_a_database(double, how):
    model, database = double["encoder"], Letters(CHUNK)
    tokens = torch.randint(0, 256, (1 if "prompt_lookup_num_tokens" in how else 2, 9), generator=torch.manual_seed(0))
    arguments = {"database": database, "max_new_tokens": 8, "eos_token_id": None, "return_dict_in_generate": True} | how
    found = []
    for route in ({}, {"custom_generate": retroflow.retroflow_generate}):
        torch.manual_seed(1)
        found.append(model.generate(tokens, **arguments, **route))
    assert torch.equal(*(each.sequences for each in found)) and found[1].past_key_values.lookups[0]
    plain = model.generate(tokens, custom_generate=retroflow.retroflow_generate, max_new_tokens=4, **how)
    assert plain.shape[1] <= 13


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_the_text_and_a_cache_changes_none(double, kind):
    model, database, prompts = double[kind], Letters(CHUNK), make_batch(2, 10)[0].clamp(min=1)
    padding = torch.ones_like(prompts)
    padding[1, :3] = 0
    given = {"attention_mask": padding, "database": database, "max_new_tokens": 7, "eos_token_id": None}
    output = model.generate(prompts, **given, return_dict_in_generate=True, output_hidden_states=True)
    tokens = output.sequences[:, :-1]
    mask = torch.nn.functional.pad(padding, (0, 6), value=1)
    whole = model(tokens, mask, database=database, output_hidden_states=True)
    assert len(whole.hidden_states) == model.config.num_hidden_layers + 1
    stepwise = [torch.cat(layer, dim=1) for layer in zip(*output.hidden_states, strict=True)]
    for layer, wanted in zip(stepwise, whole.hidden_states, strict=True):
        assert layer.shape == (2, 16, model.config.hidden_size)
        torch.testing.assert_close(layer[mask.bool()], wanted[mask.bool()])
    torch.testing.assert_close(stepwise[-1] @ model.model.output_weights().T, whole.logits)
    chosen = model(tokens, mask, database=database, output_hidden_states=[-1, 0, 99]).hidden_states
    assert torch.equal(chosen[0], whole.hidden_states[0]) and torch.equal(chosen[-1], whole.hidden_states[-1])
    assert set(chosen[1:-1]) == {None} and len(chosen) == len(whole.hidden_states)
    assert model(tokens).hidden_states is None
    weight = model.get_input_embeddings().weight
    is_trained = weight.requires_grad
    with torch.enable_grad():
        weight.requires_grad_(True)
        output = model(tokens, mask, output_hidden_states=True)
        gradients = torch.autograd.grad(output.logits.sum(), output.hidden_states)
        assert all(each.abs().sum() for each in gradients)
    weight.requires_grad_(is_trained)
    with watching(model.model) as parts:
        other = threading.Thread(target=model, args=(tokens,))
        other.start()
        other.join()
    assert not parts


@torch.no_grad()
@pytest.mark.parametrize("route", [{}, {"custom_generate": retroflow.retroflow_generate}])
def test_both_routes_stream_stop_at_a_string_and_take_an_assistant(double, folders, route):
    model, tokens = double["encoder"], make_batch(1, 9)[0].clamp(min=1)
    database = Letters(CHUNK)
    database.lock = threading.Lock()  # what holds one cannot be copied
    given = {"database": database, "max_new_tokens": 8, "eos_token_id": None} | route
    tokenizer, pieces = AutoTokenizer.from_pretrained(folders["encoder"]), []
    streamer = SimpleNamespace(
        put=lambda piece: pieces.append(piece.flatten()), end=lambda: pieces.append(tokens[0, :0])
    )
    wanted = model.generate(tokens, **given, streamer=streamer)
    assert len(pieces) == 10 and torch.equal(torch.cat(pieces), wanted[0])
    stock = make_base("llama", vocab_size=260)
    for assistant in (double["inherit"], stock):
        assert torch.equal(model.generate(tokens, **given, assistant_model=assistant), wanted)
    drafted = stock.generate(tokens, max_new_tokens=8, assistant_model=model)
    assert torch.equal(drafted, stock.generate(tokens, max_new_tokens=8))
    letter = next(each for each in wanted[0, 9:].tolist() if tokenizer.decode(each).isascii())
    stopped = model.generate(tokens, **given, stop_strings=[tokenizer.decode(letter)], tokenizer=tokenizer)
    assert torch.equal(stopped[0], wanted[0, : 10 + wanted[0, 9:].tolist().index(letter)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_can_be_cropped_chosen_from_and_copied_anywhere(double, kind):
    model, retriever = double[kind], Letters(CHUNK)
    tokens = make_batch(2, 19)[0]
    padding = torch.ones_like(tokens)
    padding[1, :2] = 0

    def wanted(rows, seen):
        return model(tokens[rows][:, :seen], padding[rows][:, :seen], database=retriever).logits[:, -1]

    def extended(cache, rows, seen, end):
        given = {"attention_mask": padding[rows][:, :end], "past_key_values": cache, "database": retriever}
        return model(tokens[rows][:, seen:end], **given).logits[:, -1]

    for records in (False, True):
        cache, rows = RetroflowCache(), [0, 1]
        if records:
            cache.activate_past_recording()
        extended(cache, rows, 0, 9)
        extended(cache, rows, 9, 15)
        kept = copy.deepcopy(cache)
        for removed in (0, 1, 4, 3, 5):  # within the last call, to a window's end, and beyond it
            cache.crop(-removed)
            seen = cache.get_seq_length()
            torch.testing.assert_close(extended(cache, rows, seen, seen + 1), wanted(rows, seen + 1))
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 0]))
        rows, seen = [1, 0], cache.get_seq_length()
        torch.testing.assert_close(extended(cache, rows, seen, 19), wanted(rows, 19))
        cache.crop(-8)
        torch.testing.assert_close(extended(cache, rows, 11, 12), wanted(rows, 12))
        assert [one.end for one in cache.lookups[1]] == [4, 8, 12]
        torch.testing.assert_close(extended(kept, [0, 1], 15, 16), wanted([0, 1], 16))
        with pytest.raises(ValueError, match="crop: 3 given; allowed: 0 to -16"):
            kept.crop(3)
        with pytest.raises(UsageError, match="a cache of 2 rows given with 1 rows of tokens"):
            model(tokens[:1], past_key_values=kept)
        kept.reset()
        assert kept.get_seq_length() == 0 and kept.batch_size == -1


@torch.no_grad()
def test_what_cannot_be_done_is_said(double, folders):
    model, (tokens, retrieved, mask) = double["retro"], make_batch()
    holes = torch.ones_like(tokens)
    holes[0, 5] = 0
    right = torch.ones_like(tokens)
    right[0, 5:] = 0
    with pytest.raises(UsageError, match="zeros after or between tokens; give padding at the left"):
        model(tokens, holes)
    with pytest.raises(UsageError, match="zeros after or between tokens; give padding at the left"):
        model(tokens, right, use_cache=True)
    for padding in (right, right.flip(1)):
        counted = (padding.cumsum(1) - 1).masked_fill(padding == 0, 1)
        assert torch.equal(model(tokens, padding, position_ids=counted).logits, model(tokens, padding).logits)
    assert torch.equal(model(tokens, right).logits[1], model(tokens).logits[1])  # before the padding nothing changes
    with pytest.raises(InvalidShapeError, match=r"neighbours: \[2, 2, 2, 8\] given; \[2, 3, k, r\] is needed"):
        model(tokens, neighbours=retrieved[:, :2])
    cache = model(tokens, use_cache=True).past_key_values
    with pytest.raises(UsageError, match="zeros in the 13 tokens that follow those of past_key_values"):
        model(tokens, torch.cat((torch.ones_like(tokens), right), dim=1), past_key_values=cache)
    with pytest.raises(UsageError, match="True given; the layers of a NoneType are not known"), watching(None):
        pass
    for wrong, message in (
        ({"neighbours_mask": mask}, "neighbours_mask: given without neighbours"),
        ({"neighbours": retrieved, "database": Letters(CHUNK)}, "database: given beside neighbours"),
        ({"past_key_values": DynamicCache()}, "past_key_values: DynamicCache given; a retroflow model has a cache"),
        (
            {"output_attentions": True},
            "output_attentions: given to a retroflow model, which keeps no attention weights",
        ),
        ({"inputs_embeds": retrieved}, "inputs_embeds: given to a retroflow model, which reads tokens"),
        (
            {"position_ids": torch.arange(13).flip(0)[None]},
            "position_ids: others given than attention_mask says",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            model(tokens, **wrong)
    for act, message in (
        (lambda: model.set_attn_implementation("eager"), "set_attn_implementation: 'eager' given; a retroflow model"),
        (lambda: model.resize_token_embeddings(9), "resize_token_embeddings: 9 given; a retroflow model keeps its 257"),
    ):
        with pytest.raises(UsageError, match=message):
            act()
    with pytest.raises(UsageError, match='cache_implementation: "static" given; a retroflow model has a cache of its'):
        model.generate(tokens, cache_implementation="static")
    with pytest.raises(UsageError, match="assistant_early_exit: 1 given; a retroflow model runs all of its layers"):
        model.generate(tokens[:1], assistant_early_exit=1)
    with pytest.raises(
        UsageError, match="generate_batch: not supported by a retroflow model; give `generate` a padded"
    ):
        model.generate(tokens, cache_implementation="paged")
    with pytest.raises(ValueError, match="not used by the model: .'neighbour'"):
        model.generate(tokens, neighbour=retrieved)
    for wrong, message in (
        (
            {"quantization_config": {"bits": 4}},
            "quantization_config given; a retroflow model takes dtype and device_map",
        ),
        ({"device_map": {"a": 0, "b": 1}}, "device_map: .* given; a retroflow model is on one device"),
        ({"device_map": "nowhere"}, "device_map: 'nowhere' given; allowed"),
        ({"dtype": "int7"}, "dtype: 'int7' given; allowed"),
        ({"attn_implementation": "eager"}, 'attn_implementation: "eager" given; a retroflow model attends'),
    ):
        with pytest.raises(UsageError, match=message):
            AutoModelForCausalLM.from_pretrained(folders["retro"], **wrong)
    with pytest.raises(
        UsageError, match="save_pretrained: push_to_hub is not supported by a retroflow model; call the"
    ):
        model.save_pretrained("never", push_to_hub=True)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_retrieves_and_a_narrower_type_is_kept(folders, kind, tmp_path):
    writer = pipeline("text-generation", model=str(folders[kind]), dtype="bfloat16")
    assert writer.model.dtype == torch.bfloat16
    off = writer(["abc", "abcdefgh"], max_new_tokens=6, batch_size=2, do_sample=False)
    on = writer(["abc", "abcdefgh"], max_new_tokens=6, batch_size=2, do_sample=False, database=Letters(CHUNK))
    assert [each[0]["generated_text"][:3] for each in off] == ["abc", "abc"] and off != on
    writer.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"})
    tokens, retrieved, mask = make_batch()
    assert again.dtype == torch.bfloat16
    assert torch.equal(again(tokens).logits, writer.model(tokens).logits)
    given = {"neighbours": retrieved, "neighbours_mask": mask}
    assert torch.equal(again(tokens, **given).logits, writer.model(tokens, **given).logits)


def test_the_trainer_trains_saves_and_resumes(folders, tmp_path):
    rows = [{"input_ids": row, "labels": row} for row in make_batch(4, 12)[0]]

    def train(steps, **resume):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(folders["retro"])
        options = TrainingArguments(
            output_dir=str(tmp_path), max_steps=steps, save_steps=1, per_device_train_batch_size=2, report_to=[],
            use_cpu=True, disable_tqdm=True, lr_scheduler_type="constant",
        )  # fmt: skip
        Trainer(model=model, args=options, train_dataset=rows).train(**resume)
        return model

    whole = train(2)
    resumed = train(2, resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    first = AutoModelForCausalLM.from_pretrained(folders["retro"])
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value) and torch.equal(saved.state_dict()[name], value)
    assert not torch.equal(first.model.embedding.weight, whole.model.embedding.weight)


def test_both_orders_of_import_register(monkeypatch):
    registered = []
    monkeypatch.setattr(transformers_registration, "_register", lambda: registered.append(1))
    transformers_registration.register_when_imported()
    assert registered == [1]  # transformers is there
    monkeypatch.setattr(transformers_registration, "_TABLE", "this_module.is_not_there")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    transformers_registration.register_when_imported()
    assert registered == [1] and importlib.util.find_spec("that_neither") is None
    monkeypatch.setattr(transformers_registration, "_TABLE", "antigravity")
    monkeypatch.setattr("webbrowser.open", lambda _: None)
    monkeypatch.delitem(sys.modules, "antigravity", raising=False)
    importlib.import_module("antigravity")
    assert registered == [1, 1]


def test_the_python_of_the_page_runs(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exported").symlink_to(folders["encoder"])
    build(tmp_path / "library", documents_of(1, 2), tokenizer="exported", chunk_length=CHUNK)
    page = (Path(__file__).parents[2] / "docs" / "hugging-face.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    names = {}
    for block in blocks:
        exec(block, names)
    assert "['d001', 'd0" in capsys.readouterr().out or "['d002', 'd0" in capsys.readouterr().out
    output = names["adapted"].generate(**names["inputs"], database=names["database"], max_new_tokens=2)
    assert output.shape[1] == names["inputs"].input_ids.shape[1] + 2
    with pytest.raises(UsageError, match="open_database: the model has no tokenizer"):
        RetroflowForCausalLM(names["model"].config, load_exported(folders["retro"]).model).open_database("library")
