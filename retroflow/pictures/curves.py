"""Curves with their pictures, as `retroflow curve` makes them."""

from collections.abc import Sequence
from pathlib import Path

from retroflow.comparison.curve import check_axis
from retroflow.comparison.curve import curve as measure_curve
from retroflow.comparison.curve_file import Curve
from retroflow.comparison.model_plan import plan_for
from retroflow.console import say
from retroflow.errors import MissingExtraError
from retroflow.pictures.plots import plot_curve
from retroflow.pictures.training_curve import training_curves as read_curves
from retroflow.runs.run import Run, folder_of


def curve(
    model: Run | str | Path,
    *overrides: str,
    over: str,
    values: Sequence[str | int] = (),
    database: str | Path | None = None,
    corpus: str | Path | None = None,
    sequences: int | str = 100,
    checkpoint: str | int | None = None,
    output: str | Path | None = None,
) -> Curve:
    """Measure the loss of a model against one thing, as `retroflow curve` does (docs/curves.md).

    Args:
        model: as in `compare`.
        overrides: as in `evaluate`.
        over: "k", "size", "retriever", "step" or "alpha".
        values: its points, such as [1, 2, 8], ["1%", "100%"] or ["exact", "bm25"]; the usual ones if there are none.
        database: as in `compare`.
        corpus: as in `compare`.
        sequences: as in `compare`.
        checkpoint: as in `load`.
        output: folder for NAME.json, .csv, .png and .svg; None for `curves` in the run folder.

    Raises:
        RetroflowError: as `compare`, or a point cannot be measured.
    """
    check_axis(over)
    given = {"database": database, "corpus": corpus, "sequences": sequences, "checkpoint": checkpoint}
    words_given = {key: None if value is None else str(value) for key, value in given.items()}
    plan = plan_for(str(folder_of(model)), overrides, **words_given)
    words, folder = [str(value) for value in values], None if output is None else Path(output)
    made = measure_curve(plan, over, words, output=folder)
    _draw(made)
    return made


def training_curves(*runs: Run | str | Path, output: str | Path | None = None) -> list[Curve]:
    """Compare the validation losses of runs over training tokens and over seconds (docs/curves.md).

    Args:
        runs: with and without retrieval, or their folders.
        output: folder for the files; None for `curves` in the first run's.

    Returns:
        The curve over tokens, and the one over seconds.

    Raises:
        UsageError: no run, or one whose losses are of other text.
    """
    made = read_curves([folder_of(run) for run in runs], None if output is None else Path(output))
    for one in made:
        _draw(one)
    return made


def _draw(made: Curve) -> None:
    """Draw a curve beside its JSON file; without matplotlib only a line says so."""
    try:
        for ending in (".png", ".svg"):
            plot_curve(made.to_json(), made.file.with_suffix(ending))
    except MissingExtraError as error:
        say(f"no picture: {error}")
