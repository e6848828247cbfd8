"""Find out what is to be compared: a run, an exported model or a pretrained base."""

from collections.abc import Sequence
from pathlib import Path

from retroflow.comparison.subject import Plan
from retroflow.errors import UsageError
from retroflow.runs.description import RUN_FILE


def plan_for(
    model: str,
    words: Sequence[str],
    *,
    database: str | None,
    corpus: Path | None,
    sequences: int | None,
    checkpoint: str | None,
) -> Plan:
    """Return the plan of a comparison, checked.

    Args:
        model: a run folder, an exported folder, or the name of a base.
        words: overrides of a run's recipe, or options of the text, the neighbours and the base.
        database: read in place of a run's own; needed by other models.
        corpus: text for other models than runs, in place of words.
        sequences: most sequences to compare; None for all.
        checkpoint: of a run, a step or a path; None for the newest.

    Raises:
        UsageError: something does not fit.
        RetroflowError: as `RunPlan.of` and `ModelPlan.of`.
    """
    if (Path(model) / RUN_FILE).is_file():
        from retroflow.comparison.run_plan import RunPlan

        if corpus is not None:
            raise UsageError(f"corpus='{corpus}': a run is compared on its own validation text; leave it out.")
        named = [] if database is None else [f"database={database}"]
        return RunPlan.of(Path(model), [*words, *named], sequences=sequences, checkpoint=checkpoint)
    from retroflow.comparison.model_plan import ModelPlan

    if checkpoint is not None:
        raise UsageError(f"checkpoint='{checkpoint}': \"{model}\" is no run and has none; leave it out.")
    return ModelPlan.of(model, words, database=database, corpus=corpus, sequences=sequences)
