"""The model card of an exported model: README.md, with the metadata that the Hugging Face hub reads.

It names no path of this machine: a base or a database in a folder is named by the folder's own name.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroflow.errors import DamagedDataError, RetroflowError
from retroflow.pretrained.gguf_file import find_gguf, read_header
from retroflow.runs.folder import RunFolder
from retroflow.runs.origin import Origin
from retroflow.runs.trained_model import TrainedModel
from retroflow.store.sealed_json import read_sealed

CARD_FILE = "README.md"

_UNKNOWN = "not known; whoever passes the folder on must find out"


@dataclass(frozen=True)
class Licences:
    """Identifiers of licences, such as "apache-2.0"; None where one is not known.

    Attributes:
        model: of the exported weights; None for the base's.
        database: of the text in the database.
    """

    model: str | None = None
    database: str | None = None


def write_card(
    trained: TrainedModel, origin: Origin, say: Callable[[str], None], licences: Licences | None = None
) -> str:
    """Return the model card of a run's model.

    Args:
        trained: the model.
        origin: of its training.
        say: gets the reason if the card lacks the losses.
        licences: that are known.
    """
    from huggingface_hub import ModelCardData

    licences = licences or Licences()
    base = trained.run.values["model"].get("base")
    of_base = _licence_of(base) if base else None
    data: dict[str, Any] = {
        "license": licences.model or of_base,
        "library_name": "retroflow",
        "pipeline_tag": "text-generation",
        "tags": ["retro", "retrieval"],
    }
    if base:
        relation = "finetune" if trained.run.values["model"].get("unfreeze") else "adapter"
        data |= {"base_model": _name_of(base), "base_model_relation": relation}
    metadata = ModelCardData(**data).to_yaml()
    rows = _rows(trained, origin, licences, of_base)
    facts = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
{metadata}
---

# {origin.recipe}

A retrieval-enhanced language model (`{trained.run.values["model"]["name"]}`, \
{sum(parameter.numel() for parameter in trained.model.parameters()):,} parameters), trained for {origin.step:,} steps \
and exported by retroflow {origin.version}.

| | |
|---|---|
{facts}

{_measured(trained, say)}{_use(trained.model.config.chunk_length)}"""


def _use(chunk_length: int) -> str:
    """How the model is used."""
    return f"""## Use

`pip install retroflow`, then, with `import retroflow` before the model is opened:

```python
import retroflow
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")
inputs = tokenizer("...", return_tensors="pt", padding=True, pad_to_multiple_of={chunk_length})
database = model.open_database("DATABASE")  # leave it out for generation without retrieval
print(tokenizer.decode(model.generate(**inputs, database=database, max_new_tokens=64)[0]))
```

Any database that was prepared with this tokenizer and chunks of {chunk_length} tokens will do:

```bash
retroflow prepare --recipe YOUR_RECIPE data.tokenizer=THIS_FOLDER data.chunk_length={chunk_length}
retroflow generate THIS_FOLDER --prompt "..." --database artifacts/index-...
retroflow generate THIS_FOLDER --prompt "..." --no-retrieval
```

Weights are safetensors; `sha256sum -c SHA256SUMS` checks the folder. What the model says may be false, and may
repeat its training text or its database word for word.
"""


def _rows(trained: TrainedModel, origin: Origin, licences: Licences, of_base: str | None) -> dict[str, str]:
    """What the model was made of: name -> Markdown."""
    values = trained.run.values
    base, corpus, index = values["model"].get("base"), values["corpus"], origin.fingerprints.get("index")
    rows = {}
    if base:
        is_trained = (
            "all of its weights were trained" if values["model"].get("unfreeze") else "its weights are unchanged"
        )
        rows["base"] = f"`{_name_of(base)}`; {is_trained}"
        rows["licence of the base"] = of_base or _UNKNOWN
    rows["licence of these weights"] = licences.model or of_base or _UNKNOWN
    rows["corpus"] = f"`{corpus['name']}`"
    if index is None:
        rows["database"] = "none: trained without retrieval"
    else:
        database = Path(str(corpus.get("path"))).name if corpus["name"] == "database" else ""
        name, _, version = database.partition("@")
        stated = (
            f"of the database `{name}`, version {version or 'that was the newest'}"
            if database
            else "of an index, which has no versions"
        )
        rows["database"] = f"fingerprint `{index}`; {stated}"
        rows["licence of the database"] = licences.database or _UNKNOWN
    rows["embedder"] = f"`{values['embedder']['name']}`"
    rows["retriever"] = (
        f"`{values['retriever']['name']}`, {origin.num_neighbours} neighbours every {origin.retrieval_step} tokens"
    )
    rows["tokenizer"] = f"`{origin.tokenizer[:16]}`"
    return rows | {kind: f"`{kind}-{print_}`" for kind, print_ in sorted(origin.fingerprints.items())}


def _measured(trained: TrainedModel, say: Callable[[str], None]) -> str:
    """The validation losses of the run's report, if it is of the exported step; else nothing."""
    try:
        report = read_sealed(RunFolder(trained.run.folder).report, remedy="The exported README has no losses.")
        if report["training"]["steps"] != trained.step:
            return ""
        rows = "\n".join(
            f"| {mode} | {loss['loss']:.4f} | {loss['bits_per_byte']:.4f} |"
            for mode, loss in report["validation"].items()
        )
        statement, findings = report["overlap_statement"], list(map(str, report["findings"]))
        gain = _gain(trained, report) if statement and "on" in report["validation"] else ""
        overlap = f"{statement or 'The overlap of text and database was not measured, so no gain is stated.'}\n\n"
        rest = "".join(f"- {finding}\n" for finding in findings if finding != statement)
    except DamagedDataError as error:
        say(str(error))
        return ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    return f"""## Measured

| retrieval | nats/token on validation text | bits/byte |
|---|--:|--:|
{rows}

"Off" is this model without retrieved text, not a model trained without it.

{gain}{overlap}{rest}
"""


def _gain(trained: TrainedModel, report: dict[str, Any]) -> str:
    """What retrieval gains, with the interval that was measured beside the report or by `retroflow compare`."""
    on, off = (report["validation"][mode]["loss"] for mode in ("on", "off"))
    interval, of = _interval(trained, report)
    stated = "; no interval was measured (`retroflow compare` does)"
    if interval is not None:
        stated = f"; 95 % interval of {of}: {interval[0]:.4f} to {interval[1]:.4f}"
    direction = "lower" if on <= off else "higher"
    return f"With retrieval the loss is {abs(off - on):.4f} nats per token {direction}{stated}.\n\n"


def _interval(trained: TrainedModel, report: dict[str, Any]) -> tuple[tuple[float, float] | None, str]:
    opponents = report.get("opponents") or {}
    bounds = opponents.get("intervals", {}).get("on_minus_off")
    if bounds is not None:
        of = f"the gain on {opponents['sequences']} of {opponents['of']} sequences, {opponents['documents']} documents"
        return (-bounds[1], -bounds[0]), of
    written = sorted(trained.run.folder.glob("comparisons/*/comparison.json"), key=lambda file: file.stat().st_mtime)
    for file in reversed(written):
        values = json.loads(file.read_text(encoding="utf-8"))
        on = next((row for row in values["rows"] if row["name"] == "on"), None)
        is_it = str(values["model"].get("checkpoint", "")).startswith(f"step-{trained.step:08d}")
        if is_it and on is not None and on["gain_interval"] is not None:
            of = f"a gain of {on['gain']:.4f} on {on['sequences']} sequences, {values['text']['documents']} documents"
            return tuple(on["gain_interval"]), of
    return None, ""


def _name_of(base: str) -> str:
    """Name a base as the hub may: a name there as it is, of a folder or file its own name alone."""
    path = Path(base).expanduser()
    is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None and not path.exists()
    name = base if is_hub_name else path.resolve().name
    return re.sub(r"[^\w./-]+", "-", name).strip("-.") or "base"


def _licence_of(base: str) -> str | None:
    """The licence that a base's own card or GGUF header states; None if they do not, or are not here."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    card: Any = Path(base).expanduser() / CARD_FILE
    try:
        gguf = find_gguf(base)
        if gguf is not None:
            stated = read_header(gguf).metadata.get("general.license")
            return str(stated) if stated else None
        if not card.is_file() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base):
            card = try_to_load_from_cache(base, CARD_FILE)
        content: Any = ModelCard(Path(card).read_text(encoding="utf-8"), ignore_metadata_errors=True).data
        stated = content.license
    except (RetroflowError, OSError, ValueError, TypeError, AttributeError):
        return None
    return str(stated) if stated else None
