"""The retriever of a recipe, created for every use, and the inputs of its index."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from retroflow.components import RETRIEVERS, create_retriever, owner_of_retriever
from retroflow.pipeline import fingerprint
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.store.artifact import INDEX_FOLDER


class RecipeRetriever:
    """A recipe's retriever section; nothing is imported until `new` is called.

    A new retriever for every use, so that an index leaves the memory with its stage.

    Attributes:
        options: the section.
        search_options: the part that does not change the index; None if there is none.
        distribution: of the retriever, "retroflow-annoy 0.1.0", or of its parts.
        owner: its name with the distribution, as in messages: "annoy (retroflow-annoy 0.1.0)".
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options
        self.search_options: object = fingerprint.search_options(options)
        parts = [part["name"] for part in options.values() if fingerprint.is_part(part)]
        origins = {RETRIEVERS.origin(name): None for name in (options["name"], *parts)}
        plugins = [origin for origin in origins if not origin.startswith("retroflow ")]
        self.distribution = ", ".join(plugins) or next(iter(origins))
        self.owner = owner_of_retriever(options["name"])

    def new(self) -> CheckedRetriever:
        """Create it, without an index.

        Raises:
            RetroflowError: as `create`.
        """
        return create_retriever(self.options)

    def load(self, index: Path) -> CheckedRetriever:
        """Create it and open an index artifact."""
        retriever = self.new()
        retriever.load(index / INDEX_FOLDER)
        return retriever

    @cached_property
    def built_over(self) -> tuple[str, ...]:
        """Kinds of the artifacts that its index is built over: chunks if it reads texts, embeddings if vectors."""
        capabilities = self.new().capabilities
        return ("chunks",) * capabilities.reads_texts + ("embeddings",) * capabilities.reads_vectors

    @property
    def reads_vectors(self) -> bool:
        """Whether anything has to be embedded for it."""
        return "embeddings" in self.built_over

    def index_inputs(self, fingerprints: Mapping[str, str]) -> fingerprint.Inputs:
        """What its index depends on, by the fingerprints of chunks and embeddings."""
        built_over = {kind: fingerprints[kind] for kind in self.built_over}
        return fingerprint.index_inputs(built_over, self.options, self.distribution, self.new().fingerprint())
