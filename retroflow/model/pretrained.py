"""A model as a folder: config.json, model.safetensors and SHA256SUMS; nothing in it is ever unpickled.

config.json has the name of the model ("retro"), the version of this format, and under "options" the fields of the
model's configuration. Its "model_type" and "architectures" are what transformers opens the folder by. Weights that two
parts of a model share are stored once. The folder is written whole or not at all.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from retroflow.errors import DamagedDataError, UsageError
from retroflow.options.annotations import parameters
from retroflow.options.fitting import Fitting, sentences
from retroflow.options.types import Block

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CHECKSUMS_FILE = "SHA256SUMS"
FORMAT_VERSION = 2
MODEL_TYPE = "retroflow"
"""What transformers knows every model of ours by; `retroflow.integrations` registers it."""
ARCHITECTURE = "RetroflowForCausalLM"

C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)


def save_pretrained(
    folder: Path, *, name: str, config: Any, model: nn.Module, base_config: Mapping[str, Any] | None = None
) -> None:
    """Write a model's configuration and weights into a new or empty folder.

    Args:
        folder: is there whole afterwards, or not at all.
        name: of the model in the registry.
        config: the dataclass that builds it.
        model: its weights, as they are (dtype kept).
        base_config: of the pretrained base, for readers of config.json that do not load the model; None without a base.

    Raises:
        UsageError: the folder holds something.
        RetroflowError: it cannot be written.
    """
    from safetensors import SafetensorError  # not at the top: the model itself needs torch alone (decision 0041)
    from safetensors.torch import save_file

    from retroflow.store.atomic import whole_folder, write_file

    values = {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "model": name,
        "format_version": FORMAT_VERSION,
        "options": dataclasses.asdict(config),
    }
    if base_config is not None:
        values["base_config"] = dict(base_config)
    shared = shared_weights(model)
    stored = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items() if key not in shared}
    with whole_folder(folder) as partial:
        write_file(partial / CONFIG_FILE, (json.dumps(values, indent=2) + "\n").encode())
        try:
            save_file(stored, partial / WEIGHTS_FILE, metadata={"format": "pt"})
        except SafetensorError as error:  # the library's word for a full disk
            raise OSError(f"{error}") from error
        write_checksums(partial)


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS over all files in and below a folder, in the form that `sha256sum -c` reads."""
    from retroflow.store.atomic import write_file

    files = [path for path in folder.rglob("*") if path.is_file() and path != folder / CHECKSUMS_FILE]
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    lines = "".join(f"{_sha256(folder / name)}  {name}\n" for name in names)
    write_file(folder / CHECKSUMS_FILE, lines.encode())


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Compare files with SHA256SUMS; without that file nothing is compared.

    Raises:
        DamagedDataError: a file is missing or has other bytes.
    """
    for name in names:
        if not (folder / name).is_file():
            raise DamagedDataError(f'"{folder}": {name} is missing; export the model again, or copy the whole folder.')
    try:
        lines = (folder / CHECKSUMS_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise DamagedDataError(f'"{folder / CHECKSUMS_FILE}": cannot be read ({error}).') from error
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in names:
        if _sha256(folder / name) != expected.get(name):
            raise DamagedDataError(
                f'"{folder / name}": its bytes are not those in {CHECKSUMS_FILE}. Copy or export it again; if you '
                f"changed it on purpose, delete {CHECKSUMS_FILE}."
            )


def read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """Read config.json.

    Returns:
        The model's name and its configuration, unchecked.

    Raises:
        UsageError: the folder holds no model, or one of another format.
        DamagedDataError: its files are not what was written.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise UsageError(
            f'"{folder}": not a model folder (it has no {CONFIG_FILE}); give one that `retroflow export` or '
            "save_pretrained made."
        )
    check_files(folder, (CONFIG_FILE, WEIGHTS_FILE))
    try:
        values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        name, version, options = values["model"], values["format_version"], dict(values["options"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedDataError(
            f'"{folder / CONFIG_FILE}": not the configuration of a retroflow model ({type(error).__name__}: {error}).'
        ) from error
    if version != FORMAT_VERSION:
        raise UsageError(
            f'"{folder / CONFIG_FILE}": format_version {version!r} given; this retroflow reads {FORMAT_VERSION}. '
            "Install the version that wrote it, or export the run again."
        )
    return str(name), options


def make_config(config_class: type[C], values: Mapping[str, Any], *, where: Path) -> C:
    """Make a configuration dataclass of JSON values.

    Raises:
        UsageError: an unknown key (the nearest is named), a missing one, a value of a wrong type, or what the class
            itself refuses; all that is wrong with keys and types at once.
    """
    fitting, made = Fitting(), cast(Any, config_class)
    try:
        config = fitting.fit(values, Block(parameters(made).options, made))
    except UsageError as error:
        raise UsageError(f'"{where}": {error}') from error
    if fitting.complaints:
        wrong = " ".join(sentences(fitting.complaints, ""))
        raise UsageError(f'"{where}": {wrong} Correct the file, or export the run again.')
    return cast(C, config)


def load_weights(model: M, folder: Path) -> M:
    """Fill a model with the weights of a folder.

    Args:
        model: built from the folder's configuration; keeps its dtype and device.
        folder: has been through `read_config`.

    Returns:
        The model, in evaluation mode.

    Raises:
        DamagedDataError: the file cannot be read, or does not hold exactly this model's weights.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / WEIGHTS_FILE
    shared = shared_weights(model)
    needed = {key: value for key, value in model.state_dict().items() if key not in shared}
    try:
        with safe_open(path, framework="pt") as file:
            _check_names(path, set(file.keys()), needed.keys())
            for key, value in needed.items():
                shape = file.get_slice(key).get_shape()
                if list(shape) != list(value.shape):
                    raise DamagedDataError(
                        f'"{path}": "{key}" has shape {list(shape)}, and {CONFIG_FILE} asks for {list(value.shape)}. '
                        "The two files are of different models; export the run again."
                    )
            state: dict[str, Tensor] = {key: file.get_tensor(key) for key in needed}
    except (SafetensorError, OSError) as error:
        raise DamagedDataError(
            f'"{path}": not weights that can be read ({error}). Copy the file or export the run again.'
        ) from error
    model.load_state_dict(state | {key: state[first] for key, first in shared.items()})
    return model.eval()


def shared_weights(model: nn.Module) -> dict[str, str]:
    """Names of weights that are another name's too, each with that name, which comes first."""
    first: dict[tuple[Any, ...], str] = {}
    shared = {}
    for key, value in model.state_dict().items():
        if value.numel():
            place = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
            if first.setdefault(place, key) != key and value.device.type != "meta":
                shared[key] = first[place]
    return shared


@contextmanager
def same_random_state() -> Iterator[None]:
    """Leave torch's random numbers as they were: weights that are drawn and then overwritten count for nothing."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _check_names(path: Path, given: set[str], needed: Iterable[str]) -> None:
    missing, unknown = sorted(set(needed) - given), sorted(given - set(needed))
    if missing or unknown:
        found = [f'"{missing[0]}" is missing'] if missing else []
        found += [f'"{unknown[0]}" is not known'] if unknown else []
        raise DamagedDataError(
            f'"{path}": not the weights of the model in {CONFIG_FILE}: {" and ".join(found)} ({len(missing)} missing, '
            f"{len(unknown)} unknown). The two files are of different models; export the run again."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
