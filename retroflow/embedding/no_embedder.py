"""The embedder of a recipe that names none, for retrievers that search texts."""

from retroflow.errors import UsageError


class NoEmbedder:
    """Stands for no embedder; it is made only for a retriever that reads vectors, and refuses."""

    def __init__(self) -> None:
        raise UsageError(
            "embedder.name is missing, and the retriever searches embeddings. Name an embedder, such as "
            "embedder.name=bert, or a retriever that searches texts, such as retriever.name=bm25."
        )
