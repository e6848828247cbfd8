"""`retroflow export`: write a run's model into a folder that needs neither the run nor Lightning."""

import json
from collections.abc import Callable
from pathlib import Path

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.model.pretrained import write_checksums
from retroflow.pipeline.options import NeighbourOptions
from retroflow.runs.model_card import CARD_FILE, CardFacts, write_card
from retroflow.runs.origin import Origin
from retroflow.runs.trained_model import TrainedModel, load_trained_model
from retroflow.store.atomic import check_unused, whole_folder, write_file
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
    facts: CardFacts | None = None,
) -> Origin:
    """Write a checkpoint of a run as weights, configuration, tokenizer and README.

    Args:
        run_folder: a run folder of `fit`.
        folder: new or empty; afterwards complete, or unchanged.
        say: called with what the README lacks: the losses, or a licence that the hub knows.
        checkpoint: a step or a path; None for the newest.
        with_base: False leaves out the pretrained base that a model was made on and did not change.
        facts: for the README, which the run does not know.

    Returns:
        The model's origin.

    Raises:
        UsageError: the folder is not empty, the run cannot be exported, there is no base to leave out, or as
            `write_card`.
        DamagedDataError: the checkpoint is damaged, or the run folder's files do not belong together.
        RetroflowError: the weights are not finite, or the folder cannot be written.
    """
    check_unused(folder)
    trained = load_trained_model(run_folder, checkpoint=checkpoint)
    origin = origin_of(trained)
    save = trained.model.save_pretrained if with_base else trained.model.save_without_base
    write_exported(folder, save, trained.tokenizer, origin, write_card(trained, origin, say, facts))
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
        write_file(partial / CARD_FILE, card.encode())
        write_checksums(partial)


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
