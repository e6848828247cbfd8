"""Small bases with random weights, one of each family, built from transformers' own configurations."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from retroflow.pretrained.retrofit import RetrofitModel
from retroflow.pretrained.retrofit_config import RetrofitConfig

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
SLIDING = {**GROUPED, "sliding_window": 9}
EXPERTS = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
           "shared_expert_intermediate_size": 8}  # fmt: skip
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": DEEP, "n_head": 2, "n_positions": 64} | NO_DROPOUT
CONFIGS = {
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_neox": ROTARY,
    "gpt_neox_sequential": {**ROTARY, "use_parallel_residual": False},
    "llama": GROUPED,
    "mistral": SLIDING,
    "ministral": {**SLIDING, "head_dim": 8},
    "ministral3": {**GROUPED, "head_dim": 8},
    "mixtral": {**SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {**SLIDING, "use_sliding_window": True, "max_window_layers": 3},
    "qwen2_moe": EXPERTS,
    "qwen3": {**GROUPED, "head_dim": 8},
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
    "gemma": {**GROUPED, "head_dim": 8},
    "olmo": GROUPED,
    "opt": {**ROTARY, "ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.0, "pad_token_id": 1},
    "phi3": {**SLIDING, "pad_token_id": 0},
    "smollm3": {**GROUPED, "pad_token_id": 0},
    "starcoder2": {**SLIDING, "use_sliding_window": True},
}
FAMILIES = list(CONFIGS)


def make_base(family="gpt2", *, dtype=torch.float32, **changes):
    """A base in evaluation mode; weights large enough that every layer and every bias matters."""
    config = AutoConfig.for_model(family.removesuffix("_sequential"), **(CONFIGS[family] | changes))
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        noise = torch.randn_like(parameter) * 0.25
        parameter.data = noise if parameter.ndim >= 2 else parameter.data + noise
    if dtype == torch.float64:
        model.set_experts_implementation("eager")  # the usual kernels of experts compute in float32 at most
    return model.to(dtype)


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


def make_retrofit(family="gpt2", *, open_gates=True, base=None, dtype=torch.float64, **changes):
    """A RETRO-fit in evaluation mode, whose new weights are no longer at step 0 unless they are asked to be."""
    model = RetrofitModel(make_options(**changes), base or make_base(family, dtype=dtype))
    if open_gates:
        torch.manual_seed(1)
        for parameter in model.retrieval.parameters():
            torch.nn.init.normal_(parameter, std=0.5 if parameter.ndim >= 2 else 1.0)
    return model.to(dtype).eval()


def make_batch(num_rows=2, length=13, num_neighbours=2, *, seed=0, step=CHUNK):
    """Tokens [b, n], retrieved [b, W, k, r] and a mask of the same shape with holes."""
    generator = torch.Generator().manual_seed(seed)
    windows = 0 if length < CHUNK else (length - CHUNK) // step + 1
    tokens = torch.randint(VOCABULARY, (num_rows, length), generator=generator)
    retrieved = torch.randint(VOCABULARY, (num_rows, windows, num_neighbours, 2 * CHUNK), generator=generator)
    mask = torch.rand(retrieved.shape, generator=generator) < 0.9
    return tokens, retrieved, mask


def make_related_batch(*args, step=CHUNK, **sizes):
    """As `make_batch`, but a neighbour of each window begins as the window ends."""
    tokens, retrieved, mask = make_batch(*args, step=step, **sizes)
    for window in range(retrieved.shape[1]):
        end = CHUNK + window * step
        retrieved[:, window, window % 2 : window % 2 + 1, :3] = tokens[:, None, end - 3 : end]
    return tokens, retrieved, mask


@torch.no_grad()
def assert_rows_can_join(model, *, step=CHUNK, tolerance=1e-9):
    """Rows of 10 and of 4 tokens, each alone, then together, with padding that is added and dropped."""
    tokens, retrieved, mask = make_related_batch(num_rows=2, length=24, step=step)
    lengths = [CHUNK + 2 * CHUNK // step * step, CHUNK]
    wanted = [
        model(*(each[row : row + 1] for each in (tokens, retrieved, mask)), retrieval_step=step)[0] for row in (0, 1)
    ]
    caches = []
    for row, length in enumerate(lengths):
        cache = model.new_cache(retrieval_step=step)
        windows = slice(0, cache.num_new_windows(length))
        model.extend(
            tokens[row : row + 1, :length], cache, *(each[row : row + 1, windows] for each in (retrieved, mask))
        )
        caches.append(cache)
    caches[1].join(caches[0], lengths[0] + step)
    cache = caches[1]
    for more in range(10):
        places = [length + more for length in reversed(lengths)]
        part = torch.stack([tokens[row, place] for row, place in zip((1, 0), places, strict=True)])[:, None]
        found = (None, None)
        if cache.num_new_windows(1):
            windows = [(place + 1 - CHUNK) // step for place in places]
            found = [
                torch.stack([each[row, w : w + 1] for row, w in zip((1, 0), windows, strict=True)])
                for each in (retrieved, mask)
            ]
        logits = model.extend(part, cache, *found)
        for at, (row, place) in enumerate(zip((1, 0), places, strict=True)):
            torch.testing.assert_close(logits[at, 0], wanted[row][place], rtol=0, atol=tolerance)
