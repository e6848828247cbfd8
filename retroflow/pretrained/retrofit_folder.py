"""A RETRO-fit as a folder: what it adds as safetensors, and its base in a folder of its own.

    config.json           the RETRO-fit's options; "base" is "base", the folder below
    model.safetensors     the weights of encoder and chunked cross-attention, and the base's fingerprint
    SHA256SUMS            of these two
    base/                 the base, written by transformers; AutoModelForCausalLM opens it

The fingerprint guards the weights of the base, trained ones (`unfreeze`) too: a folder need not know which weights
were trained.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from retroflow.errors import UsageError
from retroflow.model import pretrained
from retroflow.pretrained.base_models import fingerprint, quiet
from retroflow.pretrained.retrofit import FINGERPRINT, RetrofitModel
from retroflow.pretrained.retrofit_config import BASE_FOLDER, RetrofitConfig
from retroflow.store.atomic import whole_folder

NAME = "retrofit"
"""Of the model, in the registry and in config.json."""


def save(model: RetrofitModel, folder: Path, *, with_base: bool) -> None:
    """Write a RETRO-fit into a new or empty folder, whole or not at all.

    Args:
        model: its weights, as they are.
        folder: new or empty.
        with_base: False leaves the base where it is and names it in config.json; only if it was frozen.

    Raises:
        UsageError: the folder holds something, or a trained base would be left out.
        RetroflowError: it cannot be written.
    """
    if not with_base and model.options.unfreeze:
        raise UsageError(
            "the base of this model was trained (model.unfreeze), so that it is nowhere else and cannot be left out; "
            "write it whole, with save_pretrained or by retroflow export without options."
        )
    base = BASE_FOLDER if with_base else model.options.base
    config = replace(model.options, base=base, unfreeze=False, neighbour_store=None)  # a folder of this machine
    added = nn.Module()
    added.retrieval = model.retrieval
    # A base that is written may have other weights than the one that was loaded, of a merged adapter for instance.
    added.register_buffer(FINGERPRINT, fingerprint(model.base) if with_base else model.base_fingerprint)
    base_config = json.loads(model.base.config.to_json_string())
    with whole_folder(folder) as partial:
        pretrained.save_pretrained(partial, name=NAME, config=config, model=added, base_config=base_config)
        if with_base:
            with quiet():
                model.base.save_pretrained(partial / BASE_FOLDER)


def load(folder: Path) -> RetrofitModel:
    """Load what `save` or `retroflow export` wrote; in evaluation mode, float32, on the CPU.

    Raises:
        UsageError: no model folder, one of another model, or its base is not there or another one.
        DamagedDataError: a file is missing, changed, or not of this model.
    """
    name, values = pretrained.read_config(folder)
    if name != NAME:
        raise UsageError(
            f'"{folder}": holds a model "{name}", not "{NAME}"; open it with retroflow.load(folder, retrieval=False).'
        )
    config = pretrained.make_config(RetrofitConfig, values, where=folder / pretrained.CONFIG_FILE)
    with pretrained.same_random_state(), torch.device("cpu"):
        model = config.located_in(folder).build()
    return pretrained.load_weights(model, folder)
