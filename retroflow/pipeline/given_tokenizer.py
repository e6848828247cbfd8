"""The tokenizer of a recipe: the one it names, its model's own, or a trained one.

A pretrained model only knows its own tokens, so its configuration names the option that also gives the tokenizer
(`tokenizer_option`; docs/decisions/0050-retro-fitting.md).
"""

from typing import Any

from retroflow.components import MODELS, create
from retroflow.corpus.tokenizer import Tokenizer, load_tokenizer
from retroflow.errors import UsageError
from retroflow.pipeline.options import TRAINED, DataOptions
from retroflow.protocols import ModelConfig
from retroflow.recipe import Recipe


def given_tokenizer(recipe: Recipe, data: DataOptions) -> Tokenizer | None:
    """Find a recipe's tokenizer.

    Args:
        recipe: its model may bring a tokenizer.
        data: the recipe's data section.

    Returns:
        None for one that is still to be trained.

    Raises:
        UsageError: it cannot be found, or is not the one that the model brings.
    """
    options: dict[str, Any] | None = recipe.values.get("model")
    model: ModelConfig | None = None
    if options is not None:
        model = create(MODELS, options, vocabulary_size=1, chunk_length=data.chunk_length)
    if options is None or model is None or model.tokenizer_option is None:
        return None if data.tokenizer in (None, TRAINED) else load_tokenizer(data.tokenizer)
    key, name = f"model.{model.tokenizer_option}", options[model.tokenizer_option]
    remedy = f'Leave data.tokenizer out: "{name}" brings its own.'
    if data.tokenizer == TRAINED:
        raise UsageError(f'data.tokenizer: "{TRAINED}" given, but {key} "{name}" only knows its own tokens. {remedy}')
    try:
        own: Tokenizer = model.load_tokenizer() or load_tokenizer(name)
    except UsageError as error:
        if data.tokenizer is not None:
            return load_tokenizer(data.tokenizer)  # a folder with weights only; its vocabulary is still compared
        raise UsageError(
            f'{key}: "{name}" has no tokenizer that can be loaded, so give one as data.tokenizer, or be '
            f"saved into its folder ({error})."
        ) from error
    if data.tokenizer is None:
        return own
    given = load_tokenizer(data.tokenizer)
    if given.fingerprint() != own.fingerprint():
        raise UsageError(
            f'data.tokenizer: "{data.tokenizer}" given ({given.vocabulary_size} tokens), which is not the tokenizer of '
            f'{key} "{name}" ({own.vocabulary_size} tokens). {remedy}'
        )
    return given
