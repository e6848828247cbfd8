"""Small bases with random weights, one of each family, built from transformers' own configurations."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from retroflow.integrations.retrofit import RetrofitModel
from retroflow.integrations.retrofit_config import RetrofitConfig

VOCABULARY = 60
CHUNK = 4
DEEP = 6  # deep enough for the default layers

NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
ROTARY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": DEEP,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
GROUPED = {**ROTARY, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIGS = {
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": DEEP, "n_head": 2, "n_positions": 64} | NO_DROPOUT,
    "gpt_neox": ROTARY,
    "gpt_neox_sequential": {**ROTARY, "use_parallel_residual": False},
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 9},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
}
FAMILIES = list(CONFIGS)


def make_base(family="gpt2", **changes):
    """A base in evaluation mode; weights large enough that every layer matters."""
    config = AutoConfig.for_model(family.removesuffix("_sequential"), **(CONFIGS[family] | changes))
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


def make_options(**changes):
    options = {
        "vocabulary_size": VOCABULARY,
        "chunk_length": CHUNK,
        "base": "a base in memory",
        "encoder_width": 8,
        "encoder_layers": 1,
        "encoder_heads": 2,
    }
    return RetrofitConfig(**(options | changes))


def make_retrofit(family="gpt2", *, open_gates=True, base=None, **changes):
    """A RETRO-fit in float64 and evaluation mode, whose new weights are no longer at step 0 unless they are asked to be."""
    model = RetrofitModel(make_options(**changes), base or make_base(family))
    if open_gates:
        torch.manual_seed(1)
        for parameter in model.retrieval.parameters():
            torch.nn.init.normal_(parameter, std=0.5 if parameter.ndim >= 2 else 1.0)
    return model.double().eval()


def make_batch(num_rows=2, length=13, num_neighbours=2, *, seed=0, step=CHUNK):
    """Tokens [b, n], retrieved [b, W, k, r] and a mask of the same shape with holes."""
    generator = torch.Generator().manual_seed(seed)
    windows = 0 if length < CHUNK else (length - CHUNK) // step + 1
    tokens = torch.randint(VOCABULARY, (num_rows, length), generator=generator)
    retrieved = torch.randint(VOCABULARY, (num_rows, windows, num_neighbours, 2 * CHUNK), generator=generator)
    mask = torch.rand(retrieved.shape, generator=generator) < 0.9
    return tokens, retrieved, mask
