"""`retroflow export`: write a run's model into a folder that needs neither the run nor Lightning."""

import json
from collections.abc import Callable
from pathlib import Path

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.errors import DamagedDataError
from retroflow.model.pretrained import write_checksums
from retroflow.pipeline.options import NeighbourOptions
from retroflow.runs.folder import RunFolder
from retroflow.runs.origin import Origin
from retroflow.runs.trained_model import TrainedModel, load_trained_model
from retroflow.store.atomic import check_unused, whole_folder, write_file
from retroflow.store.sealed_json import read_sealed
from retroflow.version import __version__

GENERATION_FILE = "generation_config.json"
"""What `generate` of transformers reads: where a text ends."""


def export(
    run_folder: Path,
    folder: Path,
    *,
    say: Callable[[str], None],
    checkpoint: str | None = None,
    with_base: bool = True,
) -> Origin:
    """Write a checkpoint of a run as weights, configuration, tokenizer and README.

    Args:
        run_folder: a run folder of `fit`.
        folder: new or empty; afterwards complete, or unchanged.
        say: called with the reason if the README lacks the losses.
        checkpoint: a step or a path; None for the newest.
        with_base: False leaves out the pretrained base that a model was made on and did not change.

    Returns:
        The model's origin.

    Raises:
        UsageError: the folder is not empty, the run cannot be exported, or there is no base to leave out.
        DamagedDataError: the checkpoint is damaged, or the run folder's files do not belong together.
        RetroflowError: the weights are not finite, or the folder cannot be written.
    """
    check_unused(folder)
    trained = load_trained_model(run_folder, checkpoint=checkpoint)
    origin = origin_of(trained)
    save = trained.model.save_pretrained if with_base else trained.model.save_without_base
    write_exported(folder, save, trained.tokenizer, origin, card_of(trained, say))
    return origin


def write_exported(folder: Path, save: Callable[[Path], None], tokenizer: Tokenizer, origin: Origin, card: str) -> None:
    """Write a model as a folder that `load_exported` opens, whole or not at all.

    Args:
        folder: new or empty.
        save: writes the model's part into a folder.
        tokenizer: the model's.
        origin: the run and its training.
        card: the text of its README.

    Raises:
        UsageError: the folder is not empty.
        RetroflowError: it cannot be written.
    """
    check_unused(folder)
    with whole_folder(folder) as partial:
        save(partial)
        tokenizer.save(partial)
        origin.write(partial)
        ending = {"eos_token_id": tokenizer.end_of_text, "pad_token_id": tokenizer.end_of_text}
        write_file(partial / GENERATION_FILE, (json.dumps(ending, indent=2) + "\n").encode())
        write_file(partial / "README.md", card.encode())
        write_checksums(partial)


def card_of(trained: TrainedModel, say: Callable[[str], None]) -> str:
    """Return the model card of a run's model; `say` gets the reason if it lacks the losses."""
    return _readme(trained, origin_of(trained), _measured(trained, say))


def origin_of(trained: TrainedModel) -> Origin:
    """Return the origin of a run's model."""
    values = trained.run.values
    return Origin(
        recipe=trained.run.name,
        step=trained.step,
        num_neighbours=values["neighbours"]["k"],
        retrieval_step=NeighbourOptions(**values["neighbours"]).step_for(values["data"]["chunk_length"]),
        sequence_length=values["data"]["sequence_chunks"] * values["data"]["chunk_length"],
        tokenizer=trained.tokenizer.fingerprint(),
        fingerprints=trained.run.fingerprints,
        version=__version__,
    )


def _readme(trained: TrainedModel, origin: Origin, measured: str) -> str:
    """Return the model card: description, training data, usage."""
    values = trained.run.values
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    artifacts = "\n".join(f"| {kind} | `{kind}-{print_}` |" for kind, print_ in sorted(origin.fingerprints.items()))
    return f"""# {origin.recipe}

A retrieval-enhanced language model (`{values["model"]["name"]}`, {parameters:,} parameters), trained for \
{origin.step:,} steps and exported by retroflow {origin.version}.

| trained with | |
|---|---|
| corpus | `{values["corpus"]["name"]}` |
| embedder | `{values["embedder"]["name"]}` |
| retriever | `{values["retriever"]["name"]}`, {origin.num_neighbours} neighbours every {origin.retrieval_step} tokens |
| tokenizer | `{origin.tokenizer[:16]}` |
{artifacts}

{measured}
Any database that was prepared with this tokenizer and chunks of {trained.model.config.chunk_length} tokens will do:

```bash
retroflow prepare --recipe YOUR_RECIPE data.tokenizer=THIS_FOLDER data.chunk_length={trained.model.config.chunk_length}
retroflow generate THIS_FOLDER --prompt "..." --database artifacts/index-...
retroflow generate THIS_FOLDER --prompt "..." --no-retrieval
```

Weights are safetensors; `sha256sum -c SHA256SUMS` checks the folder. What the model says may be false, and may
repeat its training text or its database word for word.
"""


def _measured(trained: TrainedModel, say: Callable[[str], None]) -> str:
    """Return the validation losses of the run's report, if it is of the exported step."""
    try:
        report = read_sealed(RunFolder(trained.run.folder).report, remedy="The exported README has no losses.")
        if report["training"]["steps"] != trained.step:
            return ""
        rows = "\n".join(
            f"| {mode} | {loss['loss']:.4f} | {loss['bits_per_byte']:.4f} |"
            for mode, loss in report["validation"].items()
        )
        findings = "\n".join(f"- {finding}" for finding in report["findings"])
    except DamagedDataError as error:
        say(str(error))
        return ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    return f"""| retrieval | nats/token on validation text | bits/byte |
|---|--:|--:|
{rows}

"Off" is this model without retrieved text, not a model trained without it.

{findings}

"""
