"""Find out what is to be compared: a run, or an exported model or pretrained base on a text and a database.

A base reads neighbours with its own attention, as recipes/attach_smollm2.yaml has it; its words can say otherwise.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retroflow.comparison.run_plan import RunPlan
from retroflow.comparison.subject import Embedded, Plan, Subject, evenly_spaced, vectors_of, without_vectors
from retroflow.comparison.text_chunks import TextChunks, cut_text
from retroflow.components import MODELS, create, create_corpus, recipe_schema
from retroflow.corpus.tokenizer import Tokenizer, load_tokenizer
from retroflow.database.documents import corpus_section
from retroflow.database.neighbours import NumberedLike, neighbours_of
from retroflow.database.snapshot import Snapshot, named_version
from retroflow.distributed.ranks import ALONE
from retroflow.errors import UsageError
from retroflow.generation.database import check_fits
from retroflow.generation.exported import load_exported
from retroflow.model.pretrained import CHECKSUMS_FILE, CONFIG_FILE, same_random_state
from retroflow.pipeline.given_tokenizer import given_tokenizer
from retroflow.pipeline.options import DataOptions, NeighbourOptions
from retroflow.pipeline.splits import Splits
from retroflow.planning.options import TrainerOptions
from retroflow.planning.placement import Placement, place
from retroflow.pretrained.base_models import find_base
from retroflow.protocols import Int64Array
from retroflow.recipe import Recipe, RecipeSchema
from retroflow.recipe.loading import load_sections
from retroflow.runs.description import EXPORT_FILE, RUN_FILE, not_a_run, run_meant
from retroflow.runs.origin import read_origin
from retroflow.training.evaluate import search_of

LOOKUP_STEP = 16
"""Tokens between two lookups of a base, if a chunk has as many."""

_SECTIONS = ("neighbours", "data", "trainer")


def plan_for(
    model: str,
    words: Sequence[str],
    *,
    database: str | None = None,
    corpus: str | None = None,
    sequences: str | None = None,
    checkpoint: str | None = None,
) -> Plan:
    """Return the plan of a comparison, checked.

    Args:
        model: a run folder, an exported folder, or the name of a base.
        words: overrides of a run's recipe, or options of the text, the neighbours and the base.
        database: read in place of a run's own; needed by other models.
        corpus: text for other models than runs, in place of words.
        sequences: most sequences to compare; None or "all" for all.
        checkpoint: of a run, a step or a path; None for the newest.

    Raises:
        UsageError: something does not fit.
        RetroflowError: as `RunPlan.of` and `ModelPlan.of`.
    """
    most = None if sequences in (None, "all") else int(sequences) if sequences.isdigit() else 0
    if most == 0:
        raise UsageError(f"sequences='{sequences}': give a whole number above 0, or all.")
    if (Path(model) / RUN_FILE).is_file():
        if corpus is not None:
            raise UsageError(f"corpus='{corpus}': a run is compared on its own validation text; leave it out.")
        named = [] if database is None else [f"database={database}"]
        return RunPlan.of(Path(model), [*words, *named], sequences=most, checkpoint=checkpoint)
    if checkpoint is not None:
        raise UsageError(f"checkpoint='{checkpoint}': \"{model}\" is no run and has none; leave it out.")
    return ModelPlan.of(model, words, database=database, corpus=corpus, sequences=most)


@dataclass(frozen=True)
class ModelPlan:
    """A `Plan` for a model without a run.

    Attributes:
        model: an exported folder, or the name of a base.
        corpus: the section of the text.
        recipe: the sections of the neighbours, the sequences and, for a base, the model.
        snapshot: the version of the database.
        sequences: most sequences to compare; None for all.
    """

    model: str
    corpus: dict[str, Any]
    recipe: Recipe
    snapshot: Snapshot
    sequences: int | None

    @classmethod
    def of(
        cls, model: str, words: Sequence[str], *, database: str | None, corpus: str | None, sequences: int | None
    ) -> "ModelPlan":
        """Check a model, a database, and a corpus that is a path or words such as "corpus.name=text".

        Raises:
            UsageError: a part is missing, or they do not fit together.
            RetroflowError: the model or the database cannot be read.
        """
        if not _is_exported(model):
            if Path(model).is_dir() and run_meant(Path(model)) is not None:
                raise UsageError(not_a_run(Path(model)))
            if Path(model).is_dir() and not [*Path(model).glob(CONFIG_FILE), *Path(model).glob("*.gguf")]:
                raise UsageError(f'"{model}": it holds no run, no exported model and no pretrained base; give one.')
            try:
                find_base(model, weights=False)
            except UsageError as error:
                if Path(model).exists():
                    raise
                raise UsageError(f'"{model}" is no run, no exported folder and no pretrained base. {error}') from error
        if database is None:
            raise UsageError(f'database: "{model}" has none of its own; give one that `retroflow db build` made.')
        of_corpus = [word for word in words if word.startswith("corpus.")]
        if corpus is None and not of_corpus:
            raise UsageError(
                f'corpus: "{model}" has no validation text of its own; give a text, such as corpus.name=text '
                "corpus.path=FOLDER."
            )
        snapshot = Snapshot.open(*named_version(database))
        given = _own_words(model, snapshot.identity.chunk_length)
        schema = recipe_schema()
        names = _SECTIONS if _is_exported(model) else (*_SECTIONS, "model")
        sections = RecipeSchema(sections={name: schema.sections[name] for name in schema.sections if name in names})
        others = [word for word in words if word not in of_corpus]
        section = corpus_section(corpus, None, of_corpus)
        found = cls(model, section, load_sections([*given, *others], schema=sections), snapshot, sequences)
        found._check_fits()
        return found

    @property
    def folder(self) -> Path:
        """As in `Plan`: in the current folder."""
        return Path("comparisons")

    @cached_property
    def placement(self) -> Placement:
        """Device and precision."""
        return place(TrainerOptions(**self.recipe.section("trainer")), ALONE)

    @cached_property
    def definition(self) -> dict[str, Any]:
        """As in `Plan`."""
        values = self.recipe.values
        return {
            "kind": "model",
            "weights": self._digest,
            "model": values.get("model"),
            "corpus": create_corpus(self.corpus).fingerprint(),
            "database": self.snapshot.version.fingerprint,
            "neighbours": values["neighbours"],
            "sequence_chunks": values["data"]["sequence_chunks"],
            "device": self.placement.accelerator,
            "precision": self.placement.precision,
            "sequences": self.sequences,
            "seed": values["seed"],
        }

    @property
    def stated(self) -> dict[str, Any]:
        """As in `Plan`."""
        values, version = self.recipe.values, self.snapshot.version
        return {
            "model": {
                "name": self.model,
                "weights_sha256": self._digest,
                "options": values.get("model"),
                "device": self.placement.accelerator,
                "precision": self.placement.precision,
            },
            "database": {
                "name": f"{self.snapshot.folder}@{version.number} ({version.fingerprint[:16]})",
                "neighbours": values["neighbours"],
            },
            "corpus": self.corpus,
        }

    def open(self, check: Callable[[], None]) -> Subject:
        """As in `Plan`."""
        seed, identity = self.recipe.values["seed"], self.snapshot.identity
        neighbours = NeighbourOptions(**self.recipe.section("neighbours"))
        trainer = TrainerOptions(**self.recipe.section("trainer"))
        if trainer.num_threads:
            torch.set_num_threads(trainer.num_threads)
        text = cut_text(create_corpus(self.corpus), identity.tokenizer, identity.chunk_length)
        length = self.recipe.values["data"]["sequence_chunks"]
        count = -(-len(text) // length)
        sequences = evenly_spaced(count, self.sequences or count, seed)
        model = self._built().to(self.placement.device).eval()
        step = neighbours.step_for(identity.chunk_length)
        return Subject(
            model=model,
            placement=self.placement,
            splits=self._splits(text, sequences, neighbours.k, length),
            sequences=sequences,
            seed=seed,
            batch_size=trainer.eval_batch_size,
            step=None if step == identity.chunk_length else step,
            search=partial(search_of, self.snapshot),
            reads=model.config.retrieves,
            check=check,
            looked_up_all=False,
            vectors=vectors_of(self.snapshot),
        )

    @property
    def retriever(self) -> dict[str, Any]:
        """As in `Plan`."""
        return dict(self.snapshot.identity.sections["retriever"])

    def embedded(self) -> Embedded:
        """As in `Plan`: a database has the vectors that its own retriever needs, and no others."""
        raise UsageError(without_vectors(self.snapshot))

    def _splits(self, text: TextChunks, sequences: Int64Array, k: int, length: int) -> Splits:
        rows = (sequences[:, None] * length + np.arange(length)).ravel()
        tokenizer = self.snapshot.identity.tokenizer
        found = neighbours_of(self.snapshot, text, tokenizer, k, rows[rows < len(text)])
        database = NumberedLike(self.snapshot.view, text)
        return Splits(
            train_chunks=database,
            valid_chunks=text,
            train_neighbours=np.empty((len(database), 0), dtype=np.int64),
            validation_neighbours=found.ids,
            sequence_chunks=length,
            validation_scores=found.scores,
            tokenizer=self.snapshot.identity.folder / "tokenizer",
        )

    def _built(self) -> Any:
        if _is_exported(self.model):
            return load_exported(Path(self.model)).model
        identity = self.snapshot.identity
        config = create(
            MODELS,
            self.recipe.section("model"),
            vocabulary_size=identity.vocabulary_size,
            chunk_length=identity.chunk_length,
        )
        with same_random_state():
            return config.build()

    def _check_fits(self) -> None:
        identity = self.snapshot.identity
        tokenizer: Tokenizer | None = None
        if _is_exported(self.model):
            tokenizer = load_tokenizer(self.model)
        else:
            tokenizer = given_tokenizer(self.recipe, DataOptions(**self.recipe.section("data")))
        if tokenizer is not None:
            made_with = (identity.tokenizer_fingerprint, identity.chunk_length)
            length = self.recipe.values["data"]["chunk_length"]
            check_fits(self.snapshot.folder, made_with, (tokenizer, length), "retroflow db build DB")

    @cached_property
    def _digest(self) -> str:
        """SHA-256 of the weights' files."""
        if _is_exported(self.model) and (Path(self.model) / CHECKSUMS_FILE).is_file():
            return hashlib.sha256((Path(self.model) / CHECKSUMS_FILE).read_bytes()).hexdigest()
        found = Path(self.model) if _is_exported(self.model) else find_base(self.model)
        whole = hashlib.sha256()
        for path in [found] if found.is_file() else sorted([*found.glob("*.safetensors"), found / CONFIG_FILE]):
            with path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()


def _is_exported(model: str) -> bool:
    return (Path(model) / EXPORT_FILE).is_file()


def _own_words(model: str, chunk_length: int) -> list[str]:
    """Return the words that stand for what is not given."""
    if _is_exported(model):
        origin = read_origin(Path(model))
        step = min(origin.retrieval_step, chunk_length)
        words = [f"neighbours.k={origin.num_neighbours}", f"neighbours.step={step}"]
        sequence_chunks = max(1, origin.sequence_length // chunk_length)
        return [*words, f"data.chunk_length={chunk_length}", f"data.sequence_chunks={sequence_chunks}"]
    step = min(LOOKUP_STEP, chunk_length)
    reader = ["model.reader=inherit", f"model.lookups_read={LOOKUP_STEP}", "model.neighbour_offset=-1.0"]
    reader.append("model.unrelated_offset=-3.0")
    lookups = [f"neighbours.step={step}", "trainer.eval_batch_size=4", f"data.chunk_length={chunk_length}"]
    return ["model.name=retrofit", f"model.base={model}", *reader, *lookups]
