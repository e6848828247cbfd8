"""New databases for a model: from the words of a command, like a run's, or of what a run was prepared with."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from retroflow.components import database_schema
from retroflow.database.building import Plan, build, build_from_artifacts
from retroflow.database.database import Database
from retroflow.database.documents import corpus_section
from retroflow.database.snapshot import is_database
from retroflow.errors import UsageError
from retroflow.generation.database import prepared_parts
from retroflow.recipe import Recipe
from retroflow.recipe.loading import load_sections


def database_from_words(folder: Path, words: Sequence[str], recipe: Recipe | None) -> Database:
    """Make a database of a recipe's sections, or of those that words give.

    Args:
        folder: new or empty.
        words: such as "corpus.name=text"; for a recipe they are in it already.
        recipe: with these sections; None for words alone.

    Raises:
        RetroflowError: as `Database.build`.
    """
    if recipe is None:
        recipe = load_sections(words, schema=database_schema(corpus=any(word.startswith("corpus") for word in words)))
    return Database.from_recipe(folder, recipe)


def database_like(folder: Path, other: Path, words: Sequence[str]) -> Database:
    """Make a database with the tokenizer, embedder and retriever of another one, and what they have learned.

    Args:
        folder: new or empty.
        other: a database, a run folder or artifacts.
        words: of the corpus; none for an empty database.

    Raises:
        RetroflowError: as `Database.build` and `prepared_parts`.
    """
    wrong = [word for word in words if not word.startswith("corpus.")]
    if wrong:
        raise UsageError(f'build: "{wrong[0]}" contradicts what is taken from "{other}"; give corpus options only.')
    if is_database(other):
        plan = Plan.like(Database.open(other).snapshot.identity)
    else:
        parts = prepared_parts(other)
        plan = Plan.of_artifacts(parts.chunks, parts.embeddings, parts.sections)
    corpus = corpus_section(None, plan.sections["corpus"], words) if words else None
    build(folder, replace(plan, sections={**plan.sections, "corpus": corpus}), None)
    return Database.open(folder)


def database_of_prepared(folder: Path, prepared: Path, words: Sequence[str]) -> Database:
    """Make a database of what `prepare` made; nothing is cut or embedded again.

    Args:
        folder: new or empty.
        prepared: a run folder, an index folder, or a folder of artifacts that holds one.
        words: none.

    Raises:
        UsageError: there are words.
        RetroflowError: as `prepared_parts`.
    """
    if words:
        raise UsageError(f'build: "{words[0]}" cannot change what is prepared already; leave it out.')
    parts = prepared_parts(prepared)
    build_from_artifacts(folder, parts.chunks, parts.embeddings, parts.sections)
    return Database.open(folder)
