"""What `retroflow bench` and `rf.bench` call."""

from collections.abc import Sequence
from pathlib import Path

from retroflow.benchmarking.bench import FOLDER, choice_for, measure
from retroflow.benchmarking.choice import Choice
from retroflow.benchmarking.data import Source
from retroflow.benchmarking.losses import Judge
from retroflow.benchmarking.options import BenchOptions, parse_shape
from retroflow.benchmarking.results import Bench
from retroflow.errors import UsageError


def bench(
    retrievers: Sequence[str] = (),
    *,
    database: str | Path | None = None,
    vectors: str | Path | None = None,
    random: str | tuple[int, int] | None = None,
    model: str | Path | None = None,
    corpus: str | Path | None = None,
    sequences: int | str = 100,
    options: BenchOptions | None = None,
) -> Bench:
    """Measure retrievers on the same vectors, as `retroflow bench` does (docs/bench.md).

    Args:
        retrievers: such as ["faiss", "hnsw:build.links=32"], or "auto"; the installed ones of exact, faiss, scann and
            hnsw if there are none.
        database: a database, `DB@VERSION`, artifacts of `prepare`, or a run.
        vectors: a .npy file, float16 or float32 [rows, D].
        random: N and D of vectors to draw.
        model: whose loss is measured with each setting, too; a run's own vectors are searched if no others are given.
        corpus: text for a model that is no run, as in `compare`.
        sequences: of the model's text, as in `compare`.
        options: how to measure.

    Raises:
        UsageError: a retriever is unknown or unfit, the vectors cannot be read, or an index would not fit.
        RetroflowError: a library is not installed, a retriever failed, or a file cannot be written.
    """
    options = options or BenchOptions()
    judge = None
    if model is not None:
        if vectors is not None or random is not None:
            raise UsageError(
                f"model='{model}': its loss needs the texts of what is found; give its database in place of vectors."
            )
        named = None if database is None else str(database)
        judge = Judge(str(model), named, None if corpus is None else str(corpus), str(sequences))
        database = model if database is None else database
    return measure(retrievers, _source(database, vectors, random, options), options, judge)


def explain(
    *,
    database: str | Path | None = None,
    vectors: str | Path | None = None,
    random: str | tuple[int, int] | None = None,
    options: BenchOptions | None = None,
) -> Choice:
    """Say which index fits the vectors and the memory, and why; arguments as in `bench`."""
    options = options or BenchOptions()
    return choice_for(_source(database, vectors, random, options), options)


def _source(
    database: str | Path | None,
    vectors: str | Path | None,
    random: str | tuple[int, int] | None,
    options: BenchOptions,
) -> Source:
    return Source(
        vectors=None if vectors is None else str(Path(vectors).absolute()),
        database=None if database is None else str(Path(database).absolute()),
        random=parse_shape(random) if isinstance(random, str) else random,
        queries=options.queries,
        seed=options.seed,
        folder=str(Path(options.output or FOLDER).absolute()),
    )
