"""Exported folders of small models, as `retroflow export` writes them."""

import torch

from retroflow.corpus.tokenizer import train_tokenizer
from retroflow.generation.export import write_exported
from retroflow.runs.origin import Origin
from tests.generation.small import make_model
from tests.pretrained.bases import CHUNK, make_base, make_retrofit

TOKENIZER = train_tokenizer(["a b c"], 257)
INHERIT = {"reader": "inherit", "encoder_width": 896, "encoder_layers": 2, "encoder_heads": 16}
KINDS = ("retro", "encoder", "inherit")


def make(kind):
    """A model in float32, whose parts all carry a visible signal."""
    if kind == "retro":
        return make_model(double=False, vocabulary_size=TOKENIZER.vocabulary_size, smear=True).eval()
    base = make_base("mistral" if kind == "sliding" else "llama", vocab_size=TOKENIZER.vocabulary_size + 3)
    changes = INHERIT if kind == "inherit" else {"smear": True}
    return make_retrofit(base=base, dtype=torch.float32, vocabulary_size=TOKENIZER.vocabulary_size, **changes)


def origin(**changes):
    """The origin of a run with two neighbours."""
    values = {
        "recipe": "small", "step": 3, "num_neighbours": 2, "retrieval_step": CHUNK, "sequence_length": 4 * CHUNK,
        "tokenizer": TOKENIZER.fingerprint(), "fingerprints": {}, "version": "0",
    }  # fmt: skip
    return Origin(**(values | changes))


def export(model, folder):
    """Write a folder that `load_exported` and transformers open."""
    write_exported(folder, model.save_pretrained, TOKENIZER, origin(), "# small\n")
    return folder
