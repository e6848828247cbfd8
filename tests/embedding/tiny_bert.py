"""A BERT of a few thousand random weights, written as transformers writes models."""

from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast, DistilBertConfig, DistilBertModel

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "alpha", "beta", "gamma", "delta", "##s", "##ed", "(", ")"]


def write_tiny_bert(folder: Path, *, attention_scale: float = 1.0, spoil_with_nan: bool = False) -> Path:
    """Write a two-layer BertModel with its tokenizer; attention_scale multiplies the scores of attention."""
    torch.manual_seed(0)
    network = BertModel(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=64,
        )
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        for layer in network.encoder.layer:
            layer.attention.self.query.weight.mul_(attention_scale)
        if spoil_with_nan:
            network.embeddings.word_embeddings.weight[5] = torch.nan
    network.save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


def write_tiny_distilbert(folder: Path) -> Path:
    """Write a model of another architecture, which only the padded forward knows."""
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=len(WORDS), dim=24, n_layers=1, n_heads=2, hidden_dim=32)
    DistilBertModel(config).save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    tokenizer = BertTokenizerFast(vocab={word: index for index, word in enumerate(WORDS)}, do_lower_case=True)
    tokenizer.save_pretrained(folder)
