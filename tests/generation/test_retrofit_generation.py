"""A RETRO-fitted model generates and is exported as a Retro is."""

import pytest
import torch
from safetensors import safe_open

from retroflow.components import MODELS
from retroflow.errors import DamagedDataError, GenerationError, RetroflowError
from retroflow.generation import GenerationOptions, generate
from retroflow.model.pretrained import WEIGHTS_FILE, load_weights, make_config, read_config, save_pretrained
from retroflow.pretrained.retrofit import RetrofitModel
from retroflow.pretrained.retrofit_config import RetrofitConfig
from tests.generation.small import Case, HashRetriever, LetterTokenizer, generate_without_cache
from tests.pretrained.bases import make_base, make_options, make_retrofit

TOKENIZER = LetterTokenizer()
SAMPLED = {"temperature": 1.0, "stop_at_end_of_text": False, "max_new_tokens": 9}


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "mistral", "mixtral", "qwen3", "opt"])
@pytest.mark.parametrize("options", [{}, {"retrieval_step": 3}, {"align": False}])
def test_cached_generation_equals_uncached_token_for_token(family, options):
    prompts = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11, 12]]
    case = Case(make_retrofit(family), prompts, HashRetriever(4), GenerationOptions(**SAMPLED, **options))
    together = generate(case.model, TOKENIZER, prompts, retriever=case.retriever, options=case.options)
    for number, generation in enumerate(together):
        assert list(generation.tokens) == generate_without_cache(case, number)
    off = generate(case.model, TOKENIZER, prompts, options=case.options)
    assert [g.tokens for g in off] != [g.tokens for g in together]


def test_more_tokens_than_learned_positions_are_refused_at_once():
    model = make_retrofit("gpt2")
    options = GenerationOptions(max_new_tokens=53)
    assert len(generate(model, TOKENIZER, [[1] * 12], options=options)[0].tokens) <= 53
    with pytest.raises(
        GenerationError,
        match=r"prompts\[0\]: 13 tokens \(16 with padding\).* need 68 positions, and the model has learned 64",
    ):
        generate(model, TOKENIZER, [[1] * 13], options=options)
    generate(make_retrofit("llama"), TOKENIZER, [[1] * 13], options=options)


@pytest.fixture
def base_folder(tmp_path):
    make_base("gpt2").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("unfreeze", [False, True])
def test_a_retrofit_is_exported_and_loaded_by_its_name(tmp_path, base_folder, unfreeze):
    """Of a frozen base only the fingerprint is stored; of a trained one all weights, tied ones once."""
    config = make_options(base=str(base_folder), unfreeze=unfreeze)
    model = config.build()
    for parameter in model.retrieval.parameters():
        torch.nn.init.normal_(parameter)
    if unfreeze:
        torch.nn.init.normal_(model.base.get_input_embeddings().weight)
    save_pretrained(tmp_path / "out", name="retrofit", config=config, model=model)
    name, values = read_config(tmp_path / "out")
    loaded = load_weights(make_config(MODELS.get(name), values, where=tmp_path).build(), tmp_path / "out")
    tokens, retrieved = torch.randint(60, (2, 9)), torch.randint(60, (2, 2, 2, 8))
    assert torch.equal(model.eval()(tokens, retrieved), loaded(tokens, retrieved))
    with safe_open(tmp_path / "out" / WEIGHTS_FILE, framework="pt") as file:
        assert any(key.startswith("base.") for key in file.keys()) == unfreeze  # noqa: SIM118  # it is no mapping
    if unfreeze:
        output = loaded.base.get_output_embeddings().weight
        assert output is loaded.base.get_input_embeddings().weight


def test_a_retrofit_is_refused_on_another_base(tmp_path, base_folder):
    config = make_options(base=str(base_folder))
    save_pretrained(tmp_path / "out", name="retrofit", config=config, model=config.build())
    other = make_base("gpt2")
    torch.nn.init.normal_(other.get_input_embeddings().weight)
    other.save_pretrained(base_folder)
    _, values = read_config(tmp_path / "out")
    with pytest.raises((RetroflowError, DamagedDataError), match="base"):
        load_weights(make_config(MODELS.get("retrofit"), values, where=tmp_path).build(), tmp_path / "out")


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen3"])
@pytest.mark.parametrize("options", [{}, {"retrieval_step": 3}, {"align": False}])
def test_a_base_that_reads_by_itself_generates_what_it_computes(family, options):
    prompts = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11, 12]]
    config = RetrofitConfig(
        vocabulary_size=60, chunk_length=4, base="a base in memory", reader="inherit", trained=("layers",)
    )
    model = RetrofitModel(config, make_base(family, dtype=torch.float64)).double().eval()
    torch.manual_seed(1)
    for parameter in model.retrieval.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    case = Case(model, prompts, HashRetriever(4), GenerationOptions(**SAMPLED, **options))
    together = generate(model, TOKENIZER, prompts, retriever=case.retriever, options=case.options)
    for number, generation in enumerate(together):
        assert list(generation.tokens) == generate_without_cache(case, number)
    off = generate(model, TOKENIZER, prompts, options=case.options)
    assert [g.tokens for g in off] != [g.tokens for g in together]
