"""Small GGUF files, written by the library gguf: a random model of transformers and a byte-level vocabulary."""

import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = (
    "The first of 2024 rows.\n\n1. one\n2. two\n\n| a | b |\n|---|--:|\n| 10 | 200 |\n\n    indented = 3\n\treturn 15\n"
    "it's we'll don't I'm they've café naïve 北京 x2 3.14159 2026-11-26 HTTP/1.1 <|endoftext|> <|im_end|>\r\n  \n\n\n end "
) * 3
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def vocabulary(size=400):
    """Tokens, merges and kinds of a byte-level vocabulary learned on TEXT; the control tokens come first."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    content = json.loads(backend.to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].get)
    merges = [" ".join(pair) for pair in content["merges"]]
    return tokens, merges, [3 if token in CONTROL else 1 for token in tokens]


def make_model(family="llama", vocabulary_size=400):
    """A random model of two layers."""
    config = AutoConfig.for_model(
        family,
        vocab_size=vocabulary_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def write_gguf(
    path, model=None, *, pre="smollm", kind="gpt2", architecture=None, quantised=False, changes=None, extra=()
):
    """Write a model with a vocabulary.

    Args:
        changes: a function that is given the writer, to add what it likes.
        extra: further tensors, (name, numbers).
    """
    import gguf

    tokens, merges, kinds = vocabulary()
    model = model or make_model(vocabulary_size=len(tokens))
    config = model.config
    family = architecture or config.model_type
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model(kind)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if changes is not None:
        changes(writer)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        numbers = weight.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for part, count in heads.items():
            if part in name and config.model_type == "llama":  # llama.cpp turns pairs side by side
                rows = numbers.shape[0] // count // 2
                numbers = numbers.reshape(count, 2, rows, *numbers.shape[1:]).swapaxes(1, 2).reshape(numbers.shape)
        if quantised and numbers.ndim == 2:
            packed = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(gguf_name(name), numbers.copy())
    for name, numbers in extra:
        writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def gguf_name(name):
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        number, _, part = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{number}.{NAMES[part]}.{kind}"
    return f"{NAMES[stem]}.{kind}"
