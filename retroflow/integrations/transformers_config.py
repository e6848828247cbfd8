# mypy: disable-error-code="no-untyped-call"
"""The configuration of our models as transformers reads it: config.json of a saved or exported folder."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig

from retroflow.model.pretrained import MODEL_TYPE


class RetroflowConfig(PretrainedConfig):
    """Describes a model of ours.

    Attributes:
        model: its name in the registry: "retro", "retrofit" or a plugin's.
        format_version: of the folder.
        options: the fields of the model's own configuration (RetroConfig, RetrofitConfig).
        base_config: of the pretrained base; None without a base.
        num_neighbours: k of live retrieval; None for the number that the model was trained with.
        retrieval_step: tokens between two lookups; None for the step that the model was evaluated with.
        use_cache: whether `forward` makes a cache where its own argument is None.
        bos_token_id, eos_token_id, pad_token_id: as in the folder's generation_config.json; None if it does not say.
    """

    model_type: ClassVar[str] = MODEL_TYPE

    model: str = "retro"
    format_version: int = 0
    options: dict[str, Any] | None = None
    base_config: dict[str, Any] | None = None
    num_neighbours: int | None = None
    retrieval_step: int | None = None
    use_cache: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        _register_model()

    @property
    def chunk_length(self) -> int:
        """Tokens of a chunk, m."""
        return int(self._options["chunk_length"])

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding matrix, v."""
        return int(self._sizes.get("vocab_size") or self._options["vocabulary_size"])

    @property
    def hidden_size(self) -> int:
        """Features of a token, d."""
        return int(self._sizes.get("hidden_size") or self._sizes.get("n_embd") or self._options["width"])

    @property
    def num_hidden_layers(self) -> int:
        """Decoder layers."""
        return int(self._sizes.get("num_hidden_layers") or self._sizes.get("n_layer") or self._options["num_layers"])

    @property
    def num_attention_heads(self) -> int:
        """Heads of self-attention."""
        return int(self._sizes.get("num_attention_heads") or self._sizes.get("n_head") or self._options["num_heads"])

    @property
    def _options(self) -> Mapping[str, Any]:
        return self.options or {}

    @property
    def _sizes(self) -> Mapping[str, Any]:
        return self.base_config or {}


def register() -> None:
    """Let `AutoConfig` read our folders; `AutoModelForCausalLM` learns of them with the first configuration."""
    AutoConfig.register(MODEL_TYPE, RetroflowConfig, exist_ok=True)


def _register_model() -> None:
    """Let `AutoModelForCausalLM` open our folders.

    Not when transformers is imported: its classes of models, which ours extend, do not exist yet then.
    """
    from transformers import AutoModelForCausalLM

    from retroflow.integrations.transformers_model import RetroflowForCausalLM

    known = cast(Any, AutoModelForCausalLM)._model_mapping
    if RetroflowConfig not in known:
        AutoModelForCausalLM.register(RetroflowConfig, RetroflowForCausalLM)
