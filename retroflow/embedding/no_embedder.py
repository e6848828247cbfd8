"""The embedder of a recipe that names none, for retrievers that search texts."""

from retroflow.errors import RecipeError


class NoEmbedder:
    """Stands for no embedder. A retriever that reads vectors asks for it to be made, and is told that there is none."""

    def __init__(self) -> None:
        raise RecipeError(
            "embedder.name is missing, and the retriever searches embeddings. Name an embedder, such as "
            "embedder.name=bert, or a retriever that searches texts, such as retriever.name=bm25."
        )
