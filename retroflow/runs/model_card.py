"""The model card of an exported model: README.md, with the metadata that the Hugging Face hub reads.

It names no path of this machine: a base or a database in a folder is named by the folder's own name.
"""

import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroflow.errors import DamagedDataError, RetroflowError, UsageError
from retroflow.pretrained.gguf_file import find_gguf, read_header
from retroflow.runs.folder import RunFolder
from retroflow.runs.origin import Origin
from retroflow.runs.trained_model import TrainedModel
from retroflow.store.sealed_json import read_sealed

CARD_FILE = "README.md"

_UNKNOWN = "not known; whoever passes the folder on must find out"

_HUB_NAME = r"\w[\w.-]*(/\w[\w.-]*)?"


HUB_LICENCES = (
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0",
    "etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1",
    "lgpl-3.0", "isc", "h-research", "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0",
    "odc-by", "odbl", "openmdw-1.0", "openmdw-1.1", "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa",
    "unlicense", "zlib", "pddl", "lgpl-lr", "deepfloyd-if-license", "fair-noncommercial-research-license", "llama2",
    "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "grok2-community", "gemma", "unknown", "other",
)  # fmt: skip
"""Identifiers of licences that the hub accepts: the table of its documentation ("Licenses"), August 2026."""


@dataclass(frozen=True)
class CardFacts:
    """What the run of a model does not know; None where it is not known.

    Attributes:
        licence: of the exported weights, such as "apache-2.0"; None for the base's.
        licence_link: where the text of that licence is: a URL, or "LICENSE" for a file beside the README.
        database_licence: of the text in the database.
        base_model: the base's name on the hub; None for `model.base`, if that is such a name.
    """

    licence: str | None = None
    licence_link: str | None = None
    database_licence: str | None = None
    base_model: str | None = None


def write_card(
    trained: TrainedModel, origin: Origin, say: Callable[[str], None], facts: CardFacts | None = None
) -> str:
    """Return the model card of a run's model.

    Args:
        trained: the model.
        origin: of its training.
        say: gets what the card lacks: the losses, or a licence that the hub knows.
        facts: that are known.

    Raises:
        UsageError: the licence is "other", which is no name, or a base model is named for a model without a base.
    """
    from huggingface_hub import ModelCardData

    known = facts or CardFacts()
    base = trained.run.values["model"].get("base")
    if known.base_model and not base:
        raise UsageError(f'base_model: "{known.base_model}" given for a model that has no base; leave it out.')
    report = _report(trained, say)
    of_base = _licence_of(base) if base else {}
    licence = _licence_given(known.licence, known.licence_link, say) if known.licence else of_base
    data: dict[str, Any] = {
        **licence,
        "library_name": "retroflow",
        "pipeline_tag": "text-generation",
        "tags": ["retro", "retrieval"],
        "model_name": origin.recipe,
        "eval_results": _results(origin, report) or None,
    }
    base_model = known.base_model or (_hub_name(base) if base else None)
    if base_model:
        relation = "finetune" if trained.run.values["model"].get("unfreeze") else "adapter"
        data |= {"base_model": base_model, "base_model_relation": relation}
    metadata = ModelCardData(**data).to_yaml()
    table = "\n".join(f"| {name} | {value} |" for name, value in _rows(trained, origin, known, of_base).items())
    return f"""---
{metadata}
---

# {origin.recipe}

A retrieval-enhanced language model (`{trained.run.values["model"]["name"]}`, \
{sum(parameter.numel() for parameter in trained.model.parameters()):,} parameters), trained for {origin.step:,} steps \
and exported by retroflow {origin.version}.

| | |
|---|---|
{table}

{_measured(trained, report)}{_use(trained.model.config.chunk_length)}"""


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


def _rows(trained: TrainedModel, origin: Origin, facts: CardFacts, of_base: Mapping[str, str]) -> dict[str, str]:
    """What the model was made of: name -> Markdown."""
    values = trained.run.values
    base, corpus, index = values["model"].get("base"), values["corpus"], origin.fingerprints.get("index")
    rows = {}
    if base:
        is_trained = (
            "all of its weights were trained" if values["model"].get("unfreeze") else "its weights are unchanged"
        )
        rows["base"] = f"`{facts.base_model or _name_of(base)}`; {is_trained}"
        rows["licence of the base"] = _in_words(of_base)
    rows["licence of these weights"] = facts.licence or _in_words(of_base)
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
        rows["licence of the database"] = facts.database_licence or _UNKNOWN
    rows["embedder"] = f"`{values['embedder']['name']}`"
    rows["retriever"] = (
        f"`{values['retriever']['name']}`, {origin.num_neighbours} neighbours every {origin.retrieval_step} tokens"
    )
    rows["tokenizer"] = f"`{origin.tokenizer[:16]}`"
    return rows | {kind: f"`{kind}-{print_}`" for kind, print_ in sorted(origin.fingerprints.items())}


def _report(trained: TrainedModel, say: Callable[[str], None]) -> dict[str, Any] | None:
    """What the run's report says of losses; None without a report of the exported step."""
    try:
        report = read_sealed(RunFolder(trained.run.folder).report, remedy="The exported README has no losses.")
        if report["training"]["steps"] == trained.step:
            return {key: report[key] for key in ("validation", "overlap_statement", "findings")} | {
                "opponents": report.get("opponents") or {}
            }
    except DamagedDataError as error:
        say(str(error))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _results(origin: Origin, report: dict[str, Any] | None) -> list[Any]:
    """The losses with and without retrieval as the hub lists them; none while nothing is known of overlap."""
    from huggingface_hub import EvalResult

    if report is None or not report["overlap_statement"]:
        return []
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="custom",
            dataset_name=f"validation text of {origin.recipe}",
            metric_type=kind,
            metric_name=f"{name}, retrieval {mode}",
            metric_value=round(float(report["validation"][mode][kind]), 4),
        )
        for mode in ("on", "off")
        if mode in report["validation"]
        for kind, name in (("loss", "nats per token"), ("bits_per_byte", "bits per byte"))
    ]


def _measured(trained: TrainedModel, report: dict[str, Any] | None) -> str:
    """The validation losses of the report; nothing without one."""
    if report is None:
        return ""
    rows = "\n".join(
        f"| {mode} | {loss['loss']:.4f} | {loss['bits_per_byte']:.4f} |" for mode, loss in report["validation"].items()
    )
    statement, findings = report["overlap_statement"], list(map(str, report["findings"]))
    gain = _gain(trained, report) if statement and "on" in report["validation"] else ""
    overlap = f"{statement or 'The overlap of text and database was not measured, so no gain is stated.'}\n\n"
    rest = "".join(f"- {finding}\n" for finding in findings if finding != statement)
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
    opponents = report["opponents"]
    bounds = opponents.get("intervals", {}).get("on_minus_off")
    if bounds is not None:
        of = f"the gain on {opponents['sequences']} of {opponents['of']} sequences, {opponents['documents']} documents"
        return (-bounds[1], -bounds[0]), of
    written = sorted(trained.run.folder.glob("comparisons/*/comparison.json"), key=lambda file: file.stat().st_mtime)
    for file in reversed(written):
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        on = next((row for row in values["rows"] if row["name"] == "on"), None)
        is_it = str(values["model"].get("checkpoint", "")).startswith(f"step-{trained.step:08d}")
        if is_it and on is not None and on["gain_interval"] is not None:
            of = f"a gain of {on['gain']:.4f} on {on['sequences']} sequences, {values['text']['documents']} documents"
            return tuple(on["gain_interval"]), of
    return None, ""


def _hub_name(base: str) -> str | None:
    """The name of a base on the hub; None of a folder or file, unless it is in the hub's cache."""
    path = Path(base).expanduser()
    if not path.exists():
        return base if re.fullmatch(_HUB_NAME, base) else None
    cached = re.search(r"models--([\w.-]+?)--([\w.-]+)/snapshots/", path.resolve().as_posix())
    return "/".join(cached.groups()) if cached else None


def _name_of(base: str) -> str:
    """Name a base for readers: as on the hub, else a folder's or file's own name alone."""
    name = _hub_name(base) or Path(base).expanduser().resolve().name
    return re.sub(r"[^\w./-]+", "-", name).strip("-.") or "base"


def _in_words(fields: Mapping[str, str]) -> str:
    """Name the licence that metadata of the hub state."""
    return fields.get("license_name") or fields.get("license") or _UNKNOWN


def _licence_fields(licence: str, name: str | None, link: str | None) -> dict[str, str]:
    """State a licence as the hub wants it: one that it does not know is "other", with a name."""
    identifier = re.sub(r"[^a-z0-9.+-]+", "-", licence.lower()).strip("-")
    if identifier not in HUB_LICENCES:
        identifier, name = "other", name or identifier
    fields = {"license": identifier, "license_name": name, "license_link": link}
    return {key: value for key, value in fields.items() if value}


def _licence_given(licence: str, link: str | None, say: Callable[[str], None]) -> dict[str, str]:
    """State a licence that the user names, and say so if the hub does not know it.

    Raises:
        UsageError: "other", which is no name.
    """
    fields = _licence_fields(licence, None, link)
    if fields["license"] != "other":
        return fields
    if "license_name" not in fields:
        raise UsageError(
            'licence: "other" given; give the name of the licence itself, such as "my-licence-1.0"; the README '
            'then says "other" with this name.'
        )
    near = difflib.get_close_matches(fields["license_name"], HUB_LICENCES, n=1)
    meant = f' Did you mean "{near[0]}"?' if near else ""
    linked = "" if link else " Give a link to its text, too."
    say(f'licence "{licence}": not one that the hub knows, so the README says "other" with this name.{meant}{linked}')
    return fields


def _licence_of(base: str) -> dict[str, str]:
    """What a base's own card or GGUF header states of its licence, as metadata of the hub; empty if they do not."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    card: Any = Path(base).expanduser() / CARD_FILE
    try:
        gguf = find_gguf(base)
        if gguf is not None:
            header = read_header(gguf).metadata
            licence, name, link = (header.get(f"general.license{end}") for end in ("", ".name", ".link"))
        else:
            if not card.is_file() and re.fullmatch(_HUB_NAME, base):
                card = try_to_load_from_cache(base, CARD_FILE)
            content: Any = ModelCard(Path(card).read_text(encoding="utf-8"), ignore_metadata_errors=True).data
            licence, name, link = content.license, content.license_name, content.license_link
    except (RetroflowError, OSError, ValueError, TypeError, AttributeError):
        return {}
    if isinstance(licence, list):
        licence = " and ".join(map(str, licence))
    if not licence:
        return {}
    place, where = _hub_name(base), str(link or "")
    if not where.startswith("https://"):  # a file beside the base's card
        where = f"https://huggingface.co/{place}/blob/main/{where}" if where and place else ""
    return _licence_fields(str(licence), str(name) if name else None, where)
