# mypy: disable-error-code="no-untyped-call"
"""Open and write our folders for transformers' `from_pretrained` and `save_pretrained`.

They go through our own loader, which checks every file and the fingerprint of a base, and sets every weight:
transformers' loader would draw what it does not know again.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from torch import nn
from transformers import GenerationConfig

from retroflow.components import MODELS
from retroflow.devices import choose_device
from retroflow.errors import UsageError
from retroflow.generation.export import GENERATION_FILE
from retroflow.generation.exported import load_model
from retroflow.integrations.transformers_config import RetroflowConfig
from retroflow.model.pretrained import CHECKSUMS_FILE, CONFIG_FILE, make_config
from retroflow.runs.description import EXPORT_FILE
from retroflow.runs.origin import Origin, read_origin

_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")
_IGNORED = {
    "trust_remote_code", "code_revision", "use_safetensors", "low_cpu_mem_usage", "proxies", "_from_auto",
    "_from_pipeline", "_commit_hash",
}  # fmt: skip


class LoadArguments(TypedDict, total=False):
    """What `from_pretrained` takes beside the folder; whatever else transformers knows is refused."""

    config: RetroflowConfig
    dtype: torch.dtype | str | None
    torch_dtype: torch.dtype | str | None
    device_map: Any
    adapter_kwargs: dict[str, Any] | None
    output_loading_info: bool
    cache_dir: str | None
    force_download: bool
    local_files_only: bool
    revision: str | None
    token: str | bool | None


class SaveArguments(TypedDict, total=False):
    """What transformers and its trainer also pass to `save_pretrained`."""

    is_main_process: bool
    max_shard_size: int | str
    state_dict: None
    push_to_hub: bool


def build(config: RetroflowConfig) -> nn.Module:
    """Make a model with fresh weights; a base is loaded from where the configuration says."""
    folder = Path(config.name_or_path or "")
    own: Any = make_config(MODELS.get(config.model), config.options or {}, where=folder / CONFIG_FILE)
    return cast(nn.Module, own.located_in(folder).build())


def find_folder(name: str, arguments: Mapping[str, Any]) -> Path:
    """Find a local folder, or fetch one of the hub.

    Args:
        name: a folder, or a name on the hub.
        arguments: as `LoadArguments`, for the hub.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, **{key: arguments[key] for key in _HUB if key in arguments}))


def load(folder: Path, config: RetroflowConfig, arguments: Mapping[str, Any]) -> nn.Module:
    """Load a model in the type and on the device that the arguments of `from_pretrained` ask for.

    Args:
        folder: of the model.
        config: from the same folder.
        arguments: as `LoadArguments`.

    Raises:
        UsageError: an argument is not supported, or as `load_model`.
        DamagedDataError: as `load_model`.
    """
    unknown = sorted(
        name
        for name, value in arguments.items()
        if name not in LoadArguments.__annotations__ and name not in _IGNORED and value not in (None, False, "")
    )
    if unknown:
        raise UsageError(
            f"from_pretrained: {', '.join(unknown)} given; a retroflow model takes dtype and device_map, and the "
            "arguments of the hub. Leave it out."
        )
    attention = config._attn_implementation
    if attention not in (None, "sdpa"):
        raise UsageError(
            f'attn_implementation: "{attention}" given; a retroflow model attends in its own way. Leave it out.'
        )
    device = _device(arguments.get("device_map"))
    dtype = _dtype(arguments.get("dtype") or arguments.get("torch_dtype") or "auto", config)
    return cast(nn.Module, load_model(folder).to(device=device, dtype=dtype))


def read_generation_config(folder: Path) -> GenerationConfig:
    """Read how `generate` ends and chooses; the defaults where the folder does not say."""
    if (folder / GENERATION_FILE).is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig()


def origin_in(folder: Path) -> Origin | None:
    """The origin of a folder that `retroflow export` wrote; None of another."""
    return read_origin(folder) if (folder / EXPORT_FILE).is_file() else None


def save(model: Any, folder: Path, arguments: Mapping[str, Any]) -> None:
    """Write a RetroflowForCausalLM into a folder, which may hold other files, with the tokenizer it was loaded with.

    There are no checksums in it: whoever saves a tokenizer beside it would make them wrong.

    Raises:
        UsageError: an argument is not supported.
        RetroflowError: it cannot be written.
    """
    if not arguments.get("is_main_process", True):
        return
    for name, what in (("state_dict", "save the model itself"), ("push_to_hub", "call the model's push_to_hub")):
        if arguments.get(name):
            raise UsageError(f"save_pretrained: {name} is not supported by a retroflow model; {what} instead.")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        written = Path(temporary) / "model"
        model.model.save_pretrained(written)
        (written / CHECKSUMS_FILE).unlink()
        config = RetroflowConfig.from_pretrained(written)
        config.num_neighbours, config.retrieval_step = model.config.num_neighbours, model.config.retrieval_step
        config.dtype = model.dtype
        config.save_pretrained(written)
        model.generation_config.save_pretrained(written)
        _add_tokenizer(model, folder, written)
        (folder / CHECKSUMS_FILE).unlink(missing_ok=True)
        for path in written.iterdir():
            place = folder / path.name
            if place.is_dir():
                shutil.rmtree(place)
            path.replace(place)


def _add_tokenizer(model: Any, folder: Path, written: Path) -> None:
    """Copy the tokenizer, unless the folder has one, and the origin, without which retroflow does not generate."""
    names = ("tokenizer.json", "tokenizer_config.json")
    if not (folder / names[0]).is_file() and model.folder is not None and (model.folder / names[0]).is_file():
        for name in names:
            shutil.copyfile(model.folder / name, written / name)
    if model.origin is not None and any((place / names[0]).is_file() for place in (folder, written)):
        model.origin.write(written)


def _device(device_map: Any) -> torch.device:
    if isinstance(device_map, Mapping):
        if list(device_map) != [""]:
            raise UsageError(
                f"device_map: {dict(device_map)} given; a retroflow model is on one device. Give its name, such as "
                '"cuda:0", or {"": "cuda:0"}.'
            )
        device_map = device_map[""]
    if device_map is None:
        return torch.device("cpu")
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):  # all of it fits one device, or none
        return torch.device(choose_device("auto", "device_map"))
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            f'device_map: {device_map!r} given; allowed: "auto", or one device such as "cpu", "cuda:0" or 0.'
        ) from error


def _dtype(dtype: torch.dtype | str, config: RetroflowConfig) -> torch.dtype:
    if dtype == "auto":
        dtype = config.dtype or torch.float32
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise UsageError(f'dtype: {dtype!r} given; allowed: "auto", or a type such as torch.bfloat16 or "bfloat16".')
    return named
