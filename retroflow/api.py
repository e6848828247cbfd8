"""The public Python API: each command as a function. `import retroflow as rf` offers these names.

Libraries are imported inside the functions, so that `import retroflow` stays fast.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from retroflow.errors import RankEnded, UsageError
from retroflow.runs.run import Run, folder_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from retroflow.clusters.options import Shares
    from retroflow.comparison.comparison import Comparison
    from retroflow.database.database import Database
    from retroflow.evaluation.passage_report import PassageReport
    from retroflow.evaluation.report import Report
    from retroflow.generation.database import RetrievalDatabase
    from retroflow.generation.language_model import LanguageModel
    from retroflow.pipeline.prepare import Prepared, Stage
    from retroflow.pipeline.sharing import Sharing
    from retroflow.protocols import Embedder
    from retroflow.recipe import Recipe
    from retroflow.retrieval.checked import CheckedRetriever
    from retroflow.training.evaluate import Evaluation
    from retroflow.training.fit import FitResult


def load_recipe(recipe: str | Path, *overrides: str) -> "Recipe":
    """Load and check a recipe; its components are not imported.

    Args:
        recipe: a YAML file, or the name of an installed recipe ("retro_small").
        overrides: changes, such as "neighbours.k=4".

    Raises:
        UsageError: the recipe or an override is wrong; the message lists every problem with file and line.
    """
    from retroflow.components import recipe_schema
    from retroflow.recipe import load

    return load(recipe, overrides, schema=recipe_schema())


def prepare(
    recipe: "Recipe",
    *,
    report: "Callable[[Stage], None] | None" = None,
    sharing: "Sharing | None" = None,
    shares: "Shares | None" = None,
) -> "Prepared":
    """Make a recipe's chunks, embeddings, index and neighbours, or re-use those that are there.

    Args:
        recipe: a checked recipe.
        report: called with every stage as it is finished or found; None logs a line for each.
        sharing: which shard this process makes (docs/preparing.md); None makes everything.
        shares: makes all shards as jobs of a cluster, and merges them; None makes them here.

    Raises:
        RetroflowError: the recipe, the corpus or a component does not work.
    """
    _check_recipe(recipe)
    from retroflow.pipeline.prepare import prepare as prepare_artifacts
    from retroflow.pipeline.prepare import say_stage
    from retroflow.pipeline.sharing import ALONE

    if shares is not None:
        from retroflow.clusters.preparing import prepare_on

        return prepare_on(recipe, shares, report=report or say_stage)
    return prepare_artifacts(recipe, report=report or say_stage, sharing=sharing or ALONE)


def fit(
    recipe: "Recipe",
    *,
    resume: str | Path | None = None,
    show: "Callable[[FitResult], None] | None" = None,
    ignore_memory: bool = False,
) -> Run:
    """Prepare what is missing, train a model, and measure what retrieval is worth to it.

    Args:
        recipe: a checked recipe.
        resume: "last" for the recipe's last unfinished run, a run folder, or a checkpoint; None starts a new run.
        show: called with the result before the tracker is waited for; with several processes it runs in rank 0 and must
            be picklable.
        ignore_memory: train even if this machine has less memory than the run needs by formula.

    Returns:
        The run.

    Raises:
        Preempted, Interrupted: a signal came; a checkpoint is written, and `resume="last"` continues.
        RetroflowError: any other error that a user can cause.
    """
    _check_recipe(recipe)
    from retroflow.runs.resuming import check_resume
    from retroflow.training.fit import fit as fit_recipe

    resumed = None if resume is None else Path(resume)
    if resumed is not None:
        check_resume(recipe, resumed)
    result = fit_recipe(recipe, resume=resumed, show=show, ignore_memory=ignore_memory)
    if result is None:
        raise RankEnded(0)  # a rank other than 0 of a launcher's: its part is done
    return Run(result.run_folder)


def open_run(folder: str | Path) -> Run:
    """Open a run that `fit` made.

    Raises:
        UsageError: the folder holds no run.
    """
    from retroflow.runs.description import read_run

    read_run(Path(folder))
    return Run(Path(folder))


def evaluate(
    run: Run | str | Path,
    *overrides: str,
    checkpoint: str | int | None = None,
    output: str | Path | None = None,
    show: "Callable[[Evaluation], None] | None" = None,
) -> "Report":
    """Measure a checkpoint of a run over the validation split, as `retroflow evaluate` does (docs/evaluation.md).

    Args:
        run: a run, or its folder.
        overrides: changes to the run's recipe, such as "trainer.device=cpu", or "database=DB" for its neighbours.
        checkpoint: a step or a path; None for the newest.
        output: where to write the report; None for the run folder.
        show: called with the report and its file. If the file could not be written, that is raised afterwards; without
            `show` it is only logged, so that what was measured is returned.

    Raises:
        RetroflowError: not a run, or one that cannot be evaluated here.
    """
    from retroflow.console import say
    from retroflow.training.evaluate import evaluate as evaluate_run

    found = evaluate_run(
        folder_of(run),
        overrides,
        checkpoint=None if checkpoint is None else str(checkpoint),
        output=None if output is None else Path(output),
    )
    if show is not None:
        show(found)
    if found.failure is not None:
        if show is not None:
            raise found.failure
        say(str(found.failure))
    return found.report


def compare(
    model: Run | str | Path,
    *overrides: str,
    database: str | Path | None = None,
    corpus: str | Path | None = None,
    rows: "Sequence[str] | None" = None,
    sequences: int | str = 100,
    against: "Sequence[Run | str | Path]" = (),
    checkpoint: str | int | None = None,
    output: str | Path | None = None,
) -> "Comparison":
    """Compare a model with everything a user would pick instead, as `retroflow compare` does (docs/compare.md).

    Args:
        model: a run, an exported folder, or a pretrained base: a folder, a GGUF, a package or a name on the hub.
        overrides: of a run as in `evaluate`; else such as "corpus.name=jsonl", "neighbours.k=4" or
            "model.lookups_read=8". "rows.ram_stride=16" changes the size of a row.
        database: read in place of a run's own; other models have none.
        corpus: text for other models than runs, a file of JSON Lines or a folder; instead of corpus options.
        rows: names such as ["off", "on"], or "all"; None for the usual ones.
        sequences: of the text, evenly spaced; or "all".
        against: other runs of the same corpus and tokenizer, each of which becomes a row.
        checkpoint: as in `load`.
        output: folder of the comparison; None for one in the run folder, or in ./comparisons.

    Raises:
        RetroflowError: something does not fit, or the model fails the causality probe.
    """
    from retroflow.comparison.compare import compare as compare_plan
    from retroflow.comparison.model_plan import plan_for
    from retroflow.comparison.row_options import split_options

    options, words = split_options(overrides)
    given = {"database": database, "corpus": corpus, "sequences": sequences, "checkpoint": checkpoint}
    plan = plan_for(str(folder_of(model)), words, **{k: None if v is None else str(v) for k, v in given.items()})
    others = [folder_of(run) for run in against]
    return compare_plan(plan, rows=rows, options=options, against=others, output=output)


def load(
    model: Run | str | Path,
    *,
    database: "Database | RetrievalDatabase | str | Path | None" = None,
    retrieval: bool = True,
    device: str = "auto",
    checkpoint: str | int | None = None,
) -> "LanguageModel":
    """Open a trained model, ready to generate and to score.

    Args:
        model: a run, its folder, or a folder that `LanguageModel.save` or `retroflow export` wrote.
        database: an open database, or its folder; None for the run's own.
        retrieval: False opens no database.
        device: "auto", "cpu" or "cuda".
        checkpoint: of a run, a step or a path; None for the newest.

    Raises:
        GenerationError: the folder, the device or the database does not exist, or they do not fit together.
        DamagedDataError: a file differs from what was written.
    """
    from retroflow.generation.opening import open_language_model

    wanted = None if checkpoint is None else str(checkpoint)
    return open_language_model(
        folder_of(model), database=database, retrieval=retrieval, device=device, checkpoint=wanted
    )


def score(
    model: Run | str | Path,
    passages: str | Path,
    *,
    databases: "Sequence[str | Path]" = (),
    num_neighbours: int | None = None,
    retrieval_step: int | None = None,
    device: str = "auto",
    checkpoint: str | int | None = None,
    output: str | Path | None = None,
) -> "PassageReport":
    """Measure how well a model predicts given passages with each of several databases (docs/attach.md).

    Args:
        model: as in `load`.
        passages: JSON Lines, `{"text": ..., "context": ..., "old_text": ..., "document": ..., "groups": [...]}`, of
            which only the text is needed.
        databases: their folders, after the run's own; an exported model has none of its own.
        num_neighbours: chunks to retrieve for a window; None for as many as in training.
        retrieval_step: tokens between two retrievals; None for the chunk length.
        device: as in `load`.
        checkpoint: as in `load`.
        output: new file for the report; None for none.

    Raises:
        RetroflowError: a passage, the model or a database cannot be used.
    """
    import numpy as np

    from retroflow.console import progress
    from retroflow.evaluation.passage_report import PassageReport, groups_of
    from retroflow.generation.passages import open_with_databases, read_passages, score_passages
    from retroflow.runs.folder import check_new_file, write_report

    if output is not None:
        check_new_file(Path(output))
    read = read_passages(Path(passages))
    wanted = None if checkpoint is None else str(checkpoint)
    opened, by_name = open_with_databases(folder_of(model), databases, device=device, checkpoint=wanted)
    k = opened.origin.num_neighbours if num_neighbours is None else num_neighbours
    with progress("scoring", len(read), "passages") as advance:
        found = score_passages(opened, by_name, read, num_neighbours=k, retrieval_step=retrieval_step, advance=advance)
    documents = np.unique([str(passage.document) for passage in read], return_inverse=True)[1]
    report = PassageReport(
        documents=documents,
        groups=groups_of([passage.groups for passage in read]),
        nats=found.nats,
        tokens=found.tokens,
        bytes=found.bytes,
        measured={
            "model": str(folder_of(model)),
            "step": opened.origin.step,
            "passages": str(passages),
            "num_neighbours": k,
            "retrieval_step": retrieval_step or opened.model.config.chunk_length,
        },
    )
    if output is not None:
        write_report(Path(output), report.to_json())
    return report


def build_database(
    folder: str | Path,
    overrides: "Sequence[str]" = (),
    *,
    recipe: str | Path | None = None,
    prepared: str | Path | None = None,
    like: str | Path | None = None,
) -> "Database":
    """Make a database, as `retroflow db build` does (docs/database.md); `Database.build` takes documents.

    Args:
        folder: new or empty.
        overrides: sections such as "corpus.name=text"; over the recipe if there is one.
        recipe: a recipe with these sections.
        prepared: a run, or artifacts of `prepare`: nothing is cut or embedded again.
        like: a database or run whose tokenizer, embedder and retriever are used, with what they have learned.

    Raises:
        UsageError: more than one of recipe, prepared and like is given, or the folder is in use.
        RetroflowError: as `Database.build`.
    """
    from retroflow.generation.new_database import database_from_words, database_like, database_of_prepared

    if sum(one is not None for one in (recipe, prepared, like)) > 1:
        raise UsageError("build: recipe, prepared and like exclude each other; give one of them.")
    if prepared is not None:
        return database_of_prepared(Path(folder), Path(prepared), overrides)
    if like is not None:
        return database_like(Path(folder), Path(like), overrides)
    return database_from_words(Path(folder), overrides, None if recipe is None else load_recipe(recipe, *overrides))


def retriever(name: str, **options: Any) -> "CheckedRetriever":
    """Create a retriever by name.

    Args:
        name: a built-in one ("exact", "faiss", "scann", "hnsw", "bm25", "hybrid", "rerank") or a plugin's.
        options: as in a recipe, such as build={"factory": "Flat"}.

    Raises:
        RetroflowError: there is no such retriever or option, or a library is not installed.
    """
    from retroflow.components import create_retriever

    return create_retriever({"name": name, **options})


def embedder(name: str, **options: Any) -> "Embedder":
    """Create an embedder by name.

    Args:
        name: a built-in one ("bert", "lexical") or a plugin's.
        options: as in a recipe, such as dimension=256.

    Raises:
        RetroflowError: there is no such embedder or option, or a library is not installed.
    """
    from retroflow.components import EMBEDDERS, create

    made: Embedder = create(EMBEDDERS, {"name": name, **options})
    return made


def _check_recipe(recipe: object) -> None:
    from retroflow.recipe import Recipe

    if not isinstance(recipe, Recipe):
        raise UsageError(f"recipe: {type(recipe).__name__} given; a Recipe is needed, as load_recipe returns it.")
