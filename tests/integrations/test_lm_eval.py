"""The harness sees of a model what it scores and generates by itself."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch

from retroflow.corpus.tokenizer import train_tokenizer
from retroflow.errors import GenerationError
from retroflow.generation import GenerationOptions
from retroflow.generation.language_model import LanguageModel
from retroflow.generation.scoring import score_within
from retroflow.runs.origin import Origin
from retroflow.testing.tiny_corpus import tiny_texts
from tests.generation.small import HashRetriever
from tests.pretrained.bases import make_base, make_retrofit

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from retroflow.integrations.lm_eval import RetroflowLM, run_harness

TEXTS = tiny_texts(6)
CHOICES = """task: lamps
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_choice: "{{{{ends}}}}"
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""
ROLLING = """task: lamp_texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{whole}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


def base_of(tokenizer):
    return make_base("gpt2", vocab_size=tokenizer.vocabulary_size)


@pytest.fixture(scope="module")
def off(tokenizer):
    size = tokenizer.vocabulary_size
    model = make_retrofit(base=base_of(tokenizer), dtype=torch.float32, vocabulary_size=size)
    return LanguageModel(model, tokenizer, Origin("tiny", 1, 2, 4, 16, tokenizer.fingerprint(), {}, "test"), None)


@pytest.fixture(scope="module")
def on(off):
    return replace(off, database=HashRetriever(4))


@pytest.fixture(scope="module")
def hf(tokenizer, tmp_path_factory):
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>")
    fast.pad_token = fast.eos_token
    return HFLM(pretrained=base_of(tokenizer), tokenizer=fast, batch_size=2, device="cpu")


def requests(kind, *arguments):
    return [Instance(kind, {}, each, place) for place, each in enumerate(arguments)]


FACTS = TEXTS[0].splitlines()
PAIRS = [(FACTS[1], "\n" + FACTS[2]), (TEXTS[1][:5], " lamps"), ("", TEXTS[2][:30]), (FACTS[1], " no")]


def test_log_likelihoods_are_the_scores_of_the_model_in_the_order_of_the_requests(on):
    lm = RetroflowLM(on, batch_size=2, lookups="context")
    found = lm.loglikelihood(requests("loglikelihood", *PAIRS))
    for (context, text), (nats, greedy) in zip(PAIRS, found, strict=True):
        if context:
            alone = on.score(text, context=context)
            assert nats == pytest.approx(-sum(alone.nats), abs=1e-5) and greedy == all(alone.likeliest)
    turned = lm.loglikelihood(requests("loglikelihood", *PAIRS[::-1]))
    assert [nats for nats, _ in turned[::-1]] == pytest.approx([nats for nats, _ in found], abs=1e-5)


def test_by_default_windows_are_those_of_the_text_wherever_a_context_ends(on):
    lm = RetroflowLM(on)
    found = lm.loglikelihood(requests("loglikelihood", *PAIRS))
    for (context, text), (nats, greedy) in zip(PAIRS, found, strict=True):
        if context:
            count = len(on.split_tokens(context, text)[1])
            whole = on.score(context + text)
            assert nats == pytest.approx(-sum(whole.nats[-count:]), abs=1e-6)
            assert greedy == all(whole.likeliest[-count:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"max_gen_toks": 0}, "max_gen_toks is 0; allowed: a whole number of at least 1"),
        ({"max_gen_toks": "many"}, "max_gen_toks is 'many'; allowed"),
        ({"lookups": "chunk"}, 'lookups is "chunk"; allowed: "text" or "context"'),
    ],
)
def test_words_that_are_wrong_are_named_as_the_harness_names_them(on, words, message):
    with pytest.raises(GenerationError, match=re.escape(message)):
        RetroflowLM(on, **words)


def test_a_text_without_context_is_read_after_the_end_of_another(on):
    lm, text = RetroflowLM(on), PAIRS[2][1]
    ((nats, _),) = lm.loglikelihood(requests("loglikelihood", ("", text)))
    alone = on.score(text)
    assert nats < -sum(alone.nats)  # the first token is predicted, too
    assert lm.loglikelihood_rolling(requests("loglikelihood_rolling", (text,))) == pytest.approx([nats], abs=1e-5)


def test_the_greedy_flag_is_whether_generation_writes_the_text(on):
    lm, context = RetroflowLM(on), TEXTS[0][:40]
    (written,) = on.generate([context], max_new_tokens=3, stop_at_end_of_text=False)
    answers = lm._loglikelihood_tokens(
        [(("", ""), lm.tok_encode(context), list(tokens)) for tokens in (written.tokens, (5, 5, 5))]
    )
    assert [greedy for _, greedy in answers] == [True, written.tokens == (5, 5, 5)]


LONG = TEXTS[3][:400]


def test_without_retrieval_it_is_the_base_as_the_harness_reads_it(off, hf):
    lm = RetroflowLM(off, batch_size=3)
    pairs = [*PAIRS, (LONG, " lamps"), (LONG[:150], LONG[150:180])]
    ours, theirs = (each.loglikelihood(requests("loglikelihood", *pairs)) for each in (lm, hf))
    assert [nats for nats, _ in ours] == pytest.approx([nats for nats, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    texts = requests("loglikelihood_rolling", (TEXTS[0],), ("a",), (LONG,))
    assert lm.loglikelihood_rolling(texts) == pytest.approx(hf.loglikelihood_rolling(texts), abs=1e-3)
    prompts = [(TEXTS[0][:20], {"until": ["\n"], "max_gen_toks": 8}), (LONG, {"until": ["a"], "max_gen_toks": 4})]
    written = (each.generate_until(requests("generate_until", *prompts[:1])) for each in (lm, hf))
    assert len(set(map(str, written))) == 1


def test_what_is_too_long_is_cut_from_the_left_or_into_windows(on):
    lm = RetroflowLM(on)
    context, own = on.split_tokens(LONG, " lamps")
    assert len(lm.tok_encode(LONG)) > on.longest_input == 61 == len(context) + len(own) - 1
    assert context == lm.tok_encode(LONG)[-len(context) :]
    found = lm.loglikelihood(requests("loglikelihood", (LONG, " lamps"), ("a", LONG)))
    (cut,) = score_within(
        on.model, on.tokenizer, [(context, own)], retriever=on.database, options=GenerationOptions(retrieval_step=4)
    )
    assert found[0][0] == pytest.approx(-sum(cut.nats), abs=1e-5)
    whole = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (LONG,)))[0]
    assert whole < 0 and found[1][0] < 0
    assert len(lm.generate_until(requests("generate_until", (LONG, {"max_gen_toks": 5, "until": []})))) == 1


def test_answers_end_at_a_stop_text_and_keep_the_order(on):
    lm = RetroflowLM(on, batch_size=2)
    prompts = [
        (TEXTS[0][:30], {"until": ["e"], "max_gen_toks": 6}),
        ("", {"max_gen_toks": 3}),
        (TEXTS[1][:10], {"until": ["e"], "max_gen_toks": 6}),
    ]
    found = lm.generate_until(requests("generate_until", *prompts))
    for (context, given), text in zip(prompts, found, strict=True):
        if context:
            options = {"max_new_tokens": given["max_gen_toks"], "stop": ("e",)}
            assert text == on.generate(context, **options).text and "e" not in text
    drawn = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "max_gen_toks": 4}
    assert len(lm.generate_until(requests("generate_until", (TEXTS[0][:30], drawn)))) == 1


def test_local_tasks_run_without_a_network(on, off, hf, tmp_path, monkeypatch):
    lines = [{"start": text[:50], "ends": [text[50:60], " no lamps"], "whole": text[:200]} for text in TEXTS]
    (tmp_path / "lamps.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name, content in {"lamps": CHOICES, "texts": ROLLING}.items():
        (tmp_path / f"{name}.yaml").write_text(content.format(file=tmp_path / "lamps.jsonl"))
    found = run_harness({"off": off, "on": on}, [str(tmp_path)], limit=4, options=GenerationOptions(retrieval_step=4))
    assert set(found) == {"off", "on"} and set(found["on"]["results"]) == {"lamps", "lamp_texts"}
    off_bits, on_bits = (found[way]["results"]["lamp_texts"]["bits_per_byte,none"] for way in ("off", "on"))
    texts = requests("loglikelihood_rolling", *[(line["whole"],) for line in lines[:4]])
    wanted = -sum(hf.loglikelihood_rolling(texts)) / math.log(2) / sum(len(one.args[0]) for one in texts)
    assert off_bits == pytest.approx(wanted, abs=1e-4) and on_bits != off_bits
    assert found["on"]["n-samples"]["lamps"]["effective"] == 4 and len(found["on"]["samples"]["lamps"]) == 4
    monkeypatch.setattr(
        "retroflow.integrations.lm_eval.TaskManager", lambda **words: TaskManager(include_defaults=False)
    )
    with pytest.raises(GenerationError, match="tasks: no_such_task: neither ours nor of the installed lm-eval"):
        run_harness({"on": on}, ["no_such_task"], limit=1, options=GenerationOptions())


def test_the_harness_finds_the_class_and_makes_it_from_its_words(on, monkeypatch):
    assert get_model("retroflow") is RetroflowLM
    monkeypatch.setattr("retroflow.integrations.lm_eval.open_language_model", lambda *_, **words: (on, words)[0])
    words = "model=runs/x/0001,retrieval_step=4,num_neighbours=1"
    lm = RetroflowLM.create_from_arg_string(words, {"batch_size": "auto", "max_batch_size": 4, "device": "cpu"})
    assert lm.opened is on and lm.tokenizer_name == on.origin.tokenizer
