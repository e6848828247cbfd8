"""The model in a GGUF, opened by transformers and de-quantised: dense weights in float32 like those of any base."""

import copy
from contextlib import redirect_stderr
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from retroflow.errors import DamagedDataError, UsageError
from retroflow.pretrained.gguf_file import read_header


def read_gguf_config(path: Path) -> PretrainedConfig:
    """Read the configuration in a GGUF, in the words of transformers.

    Raises:
        RetroflowError: as `read_header`; or transformers cannot make a configuration of it.
    """
    header = read_header(path)
    status = path.stat()
    return copy.deepcopy(_read_config(header.path, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=2)
def _read_config(path: Path, _size: int, _modified: int) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except Exception as error:  # KeyError for a key that is not there, and whatever its numbers may cause
        if "is not supported" in str(error):
            raise UsageError(
                f'model.base: "{path}" is of the architecture "{read_header(path).architecture}", which transformers '
                "does not read from a GGUF. Give the model as a folder written by save_pretrained of transformers."
            ) from error
        raise DamagedDataError(
            f'model.base: transformers cannot read the configuration in "{path}" ({type(error).__name__}: '
            f"{' '.join(str(error).split())[:160]}). Download it again."
        ) from error


def load_gguf(path: Path, config: PretrainedConfig) -> PreTrainedModel:
    """Load the weights of a GGUF, de-quantised to float32.

    Args:
        path: the file.
        config: from `read_gguf_config`.

    Raises:
        DamagedDataError: weights are missing, or have no place in the model.
    """
    header = read_header(path)
    try:
        with redirect_stderr(StringIO()):  # a progress bar that no option of transformers switches off
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # shapes that do not fit, numbers that cannot be de-quantised
        raise DamagedDataError(
            f'model.base: the weights in "{path}" cannot be loaded ({" ".join(str(error).split())[:200]}). Download '
            "it again."
        ) from error
    model: PreTrainedModel
    model, report = loaded
    missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    own, given = sum(parameter.numel() for parameter in model.parameters()), sum(header.sizes.values())
    if missing or own != given:
        what = f"lack {', '.join(missing[:3])}" if missing else f"are {given:,} numbers, and the model has {own:,}"
        raise DamagedDataError(
            f'model.base: the weights in "{path}" {what}: transformers does not read this file as it was written. '
            "Give the model as a folder written by save_pretrained of transformers."
        )
    # The weights are dense now, and save_pretrained refuses what calls itself quantised.
    del model.config.quantization_config
    for name, value in (("hf_quantizer", None), ("is_quantized", False)):
        setattr(model, name, value)
    return model
