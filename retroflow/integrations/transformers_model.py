# mypy: disable-error-code="override, misc, no-untyped-call"
# (transformers types the methods of its mixins for subclasses that add nothing)
"""A model of ours as a causal language model of transformers: forward, generate and its kinds of decoding.

Shapes: b batch, n tokens of a call, m tokens of a chunk, W windows that end within these tokens (whole chunks, unless
neighbours are looked up more often), k neighbours, r = 2m tokens of a neighbour with its continuation, v vocabulary.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Unpack, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from retroflow.corpus.tokenizer import load_tokenizer
from retroflow.database.database import Database
from retroflow.errors import UsageError
from retroflow.generation.database import RetrievalDatabase
from retroflow.generation.options import GenerationOptions
from retroflow.generation.retrieved import LiveRetriever
from retroflow.integrations import transformers_folder
from retroflow.integrations.transformers_arguments import (
    GenerationArguments,
    OtherArguments,
    cache_of,
    check_generation,
    check_others,
    check_positions,
    left_padding,
)
from retroflow.integrations.transformers_cache import RetroflowCache
from retroflow.integrations.transformers_config import RetroflowConfig
from retroflow.integrations.transformers_folder import LoadArguments, SaveArguments
from retroflow.integrations.transformers_generate import retroflow_generate
from retroflow.integrations.transformers_neighbours import FindNeighbours, GivenNeighbours, LiveNeighbours
from retroflow.integrations.transformers_states import LayerStates, joined, watching
from retroflow.model.retro import Retro
from retroflow.model.windows import checked_step, num_windows
from retroflow.pretrained.retrofit import RetrofitModel
from retroflow.protocols import RetrievalModel
from retroflow.runs.origin import Origin


class RetroflowForCausalLM(PreTrainedModel, GenerationMixin):
    """A Retro, a RETRO-fit or a plugin's model, used as any causal language model of transformers.

    Args:
        config: of the model.
        model: one that is built; None builds one with fresh weights.

    Attributes:
        model: the model itself, with its own `forward`.
        folder: it was loaded from; None of one that was built.
        origin: of its training; None if it is not known.
    """

    config_class: ClassVar[type[RetroflowConfig]] = RetroflowConfig
    base_model_prefix: ClassVar[str] = "model"
    main_input_name: ClassVar[str] = "input_ids"
    _supports_sdpa: ClassVar[bool] = True

    def __init__(self, config: RetroflowConfig, model: RetrievalModel | None = None) -> None:
        super().__init__(config)
        built: Any = transformers_folder.build(config) if model is None else model
        if isinstance(built, RetrofitModel):
            built.has_whole_state = True
        self.model = built
        self.folder: Path | None = None
        self.origin: Origin | None = None
        self.post_init()
        self.train(built.training)

    def forward(  # noqa: PLR0913 - transformers' own (decision 0080)
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        neighbours: Tensor | None = None,
        neighbours_mask: Tensor | None = None,
        past_key_values: RetroflowCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        database: LiveRetriever | None = None,
        **others: Unpack[OtherArguments],
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Predict every next token. Without `neighbours` and `database` retrieval is off.

        Args:
            input_ids: int64 [b, n]; with a cache those that follow what it has seen.
            attention_mask: [b, n], with a cache also for the tokens before; 0 at padding, which stands at the left, or
                without a cache at the right.
            labels: int64 [b, n], as `input_ids`, -100 where nothing is predicted; shifted here.
            neighbours: int64 [b, W, k, r], already retrieved.
            neighbours_mask: bool [b, W, k, r] or [b, W, k], True where a token was retrieved; None for all.
            past_key_values: of the calls before; then there are no gradients.
            use_cache: True makes a cache, False makes none, and None does what `config.use_cache` says.
            logits_to_keep: of how many last tokens, or of which; 0 for all.
            database: is searched for the windows that end within these tokens, such as `open_database` returns.
            others: see `OtherArguments`.

        Returns:
            logits float [b, n, v], loss if there are labels, past_key_values if there is a cache, and with
            output_hidden_states `transformers_states.LayerStates`.

        Raises:
            UsageError: arguments that exclude each other, or that the model has no use for.
            InvalidShapeError: tensors that do not fit the model.
        """
        check_others(others)
        find = self._find(neighbours, neighbours_mask, database)
        caches = self.config.use_cache if use_cache is None else use_cache
        cache = cache_of(past_key_values, is_wanted=caches and labels is None)
        check_positions(others.get("position_ids"), attention_mask, cache, input_ids.shape[1])
        padding = left_padding(attention_mask, cache, input_ids.shape[1])
        wanted = others.get("output_hidden_states")
        wanted = self.config.output_hidden_states if wanted is None else wanted
        watch: AbstractContextManager[list[LayerStates] | None] = watching(self.model) if wanted else nullcontext()
        with watch as states:
            if cache is None:
                logits = self._predict(input_ids, padding, find)
            else:
                logits = cache.extend(self.model, input_ids, padding, self.retrieval_step, find)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        loss = None
        if labels is not None:
            named = {"vocab_size": logits.shape[-1], "num_items_in_batch": others.get("num_items_in_batch")}
            loss = self.loss_function(logits, labels, **named)
        output = CausalLMOutputWithPast(loss=loss, logits=logits[:, kept], past_key_values=cache)
        if states is not None and wanted:
            output.hidden_states = joined(states, input_ids.shape[1], wanted)
        return output.to_tuple() if others.get("return_dict") is False else output

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: RetroflowCache | None = None,
        attention_mask: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Unpack[GenerationArguments],
    ) -> dict[str, Any]:
        """Return the arguments of the next `forward`; of `neighbours`, those of the windows that it needs."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            cast(Any, input_ids),
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=cast(Any, attention_mask),
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        neighbours, mask = inputs.pop("neighbours", None), inputs.pop("neighbours_mask", None)
        if neighbours is None or (past_key_values is not None and not is_first_iteration):
            return inputs
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        m, step = self.config.chunk_length, self.retrieval_step
        first, stop = (num_windows(n, m, step) for n in (before, before + inputs["input_ids"].shape[1]))
        missing = stop - first - neighbours.shape[1]  # of new text, for which nothing was looked up
        if missing > 0:
            mask = torch.ones_like(neighbours, dtype=torch.bool) if mask is None else mask
            neighbours, mask = (
                torch.cat((each, each.new_zeros(len(each), missing, *each.shape[2:])), dim=1)
                for each in (neighbours, mask)
            )
        return inputs | {"neighbours": neighbours, "neighbours_mask": mask}

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *others: Any, **named: Any
    ) -> None:
        check_generation(generation_config)
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *others, **named)
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            cache = model_kwargs["past_key_values"] = RetroflowCache()
            if generation_config.is_assistant:
                cache.activate_past_recording()

    def _extract_generation_mode_kwargs(self, custom_generate: Any, *others: Any) -> dict[str, Any]:
        """Let `retroflow_generate` have the streamer, assistant and tokenizer, which other functions never get."""
        is_ours = custom_generate is retroflow_generate
        found: dict[str, Any] = super()._extract_generation_mode_kwargs(None if is_ours else custom_generate, *others)
        return found

    def _get_candidate_generator(self, model_kwargs: dict[str, Any], **named: Any) -> Any:
        """Let an assistant of ours search the same database, which transformers would copy; others take none."""
        own = ("database", "neighbours", "neighbours_mask")
        shared = {name: value for name, value in model_kwargs.items() if name not in own}
        generator: Any = super()._get_candidate_generator(model_kwargs=shared, **named)
        assistant = named.get("assistant_model")
        if isinstance(assistant, RetroflowForCausalLM) and assistant.config.chunk_length == self.config.chunk_length:
            generator.assistant_kwargs["database"] = model_kwargs.get("database")
        return generator

    def init_continuous_batching(
        self, generation_config: Any = None, continuous_batching_config: Any = None, workload_hints: Any = None
    ) -> Any:
        """Refuse transformers' own batching of requests.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "generate_batch: not supported by a retroflow model; give `generate` a padded batch, or let "
            "`retroflow serve` batch requests."
        )

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Unpack[LoadArguments]) -> Any:
        """Open what `retroflow export` or `save_pretrained` wrote; in evaluation mode.

        Args:
            pretrained_model_name_or_path: a folder, or a name on the hub.
            kwargs: see `LoadArguments`. dtype "auto", the default, is the type that the model was saved in.

        Returns:
            The model; with output_loading_info also what is missing, which is nothing: another file is refused.

        Raises:
            UsageError: no model folder, or an argument that is not supported.
            DamagedDataError: a file is missing, changed, or not of this model.
        """
        folder = transformers_folder.find_folder(str(pretrained_model_name_or_path), kwargs)
        config = kwargs.get("config") or RetroflowConfig.from_pretrained(folder)
        origin = transformers_folder.origin_in(folder)
        if origin is not None:
            config.num_neighbours = config.num_neighbours or origin.num_neighbours
            config.retrieval_step = config.retrieval_step or origin.retrieval_step
        model = cls(config, cast(RetrievalModel, transformers_folder.load(folder, config, kwargs)))
        model.folder, model.origin = folder, origin
        ending = model.generation_config = transformers_folder.read_generation_config(folder)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(config, name) is None:
                setattr(config, name, getattr(ending, name))
        adapter = dict(kwargs.get("adapter_kwargs") or {})
        adapter_folder = adapter.pop("_adapter_model_path", None)
        if adapter_folder is not None:
            model.load_adapter(adapter_folder, adapter_kwargs=adapter)
        model.eval()
        if not kwargs.get("output_loading_info"):
            return model
        kinds = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs", "conversion_errors")
        return model, {kind: set[str]() for kind in kinds}

    def save_pretrained(self, save_directory: str | Path, **kwargs: Unpack[SaveArguments]) -> None:
        """Write the model into a folder that `from_pretrained` and `retroflow` open; other files in it stay.

        Args:
            save_directory: is made if it does not exist.
            kwargs: see `SaveArguments`.

        Raises:
            UsageError: an argument is not supported.
            RetroflowError: it cannot be written.
        """
        transformers_folder.save(self, Path(save_directory), kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights as `torch.nn.Module` does, also those of a saved folder, as transformers' trainer resumes.

        Raises:
            UsageError: the weights of a folder, whose base is another one than this model's.
        """
        if not any(name.startswith("model.") for name in state_dict):
            state_dict = {f"model.{name}": value for name, value in state_dict.items()}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def open_database(self, database: Database | Path | str) -> RetrievalDatabase:
        """Open a database for the `database` argument of `generate`.

        Args:
            database: an open one, or its folder.

        Raises:
            UsageError: the model was not loaded from a folder with a tokenizer.
            GenerationError: no such database, or it was made with another tokenizer or chunk length.
        """
        if self.folder is None:
            raise UsageError("open_database: the model has no tokenizer; open it with from_pretrained.")
        reader = {"tokenizer": load_tokenizer(str(self.folder)), "chunk_length": self.config.chunk_length}
        if isinstance(database, Database):
            return RetrievalDatabase.of(database, **reader)
        return RetrievalDatabase.open(Path(database), **reader)

    @property
    def num_neighbours(self) -> int:
        """Neighbours that are looked up for a window, k."""
        return self.config.num_neighbours or GenerationOptions().num_neighbours

    @property
    def retrieval_step(self) -> int:
        """Tokens between two lookups."""
        return checked_step(self.config.retrieval_step, self.config.chunk_length)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embeddings of tokens."""
        if isinstance(self.model, RetrofitModel):
            return self.model.base.get_input_embeddings()
        return self.model.embedding if isinstance(self.model, Retro) else super().get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embeddings of tokens, of as many as before."""
        if isinstance(self.model, RetrofitModel):
            self.model.base.set_input_embeddings(value)
        elif isinstance(self.model, Retro):
            self.model.embedding = cast(nn.Embedding, value)
        else:
            super().set_input_embeddings(value)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Return the embeddings; other sizes are refused, because neighbours come in the tokens of the database.

        Raises:
            UsageError: another number of tokens.
        """
        if new_num_tokens not in (None, self.config.vocab_size):
            raise UsageError(
                f"resize_token_embeddings: {new_num_tokens} given; a retroflow model keeps its "
                f"{self.config.vocab_size} tokens, those of its database. Train one with another tokenizer instead."
            )
        return cast(nn.Embedding, self.get_input_embeddings())

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, str], allow_all_kernels: bool = False
    ) -> None:
        """Refuse another attention.

        Raises:
            UsageError: not "sdpa".
        """
        if attn_implementation != "sdpa":
            raise UsageError(
                f"set_attn_implementation: {attn_implementation!r} given; a retroflow model attends in its own way."
            )

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the map to logits; None where it is the embeddings'."""
        if isinstance(self.model, RetrofitModel):
            return cast(nn.Module, self.model.base.get_output_embeddings())
        return self.model.output if isinstance(self.model, Retro) else None

    def init_weights(self) -> None:
        """Leave the weights as they are: a model of ours has drawn or loaded its own, gates that are 0 among them."""

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the weights as they are; see `init_weights`."""

    def _predict(self, tokens: Tensor, padding: Tensor | None, find: FindNeighbours | None) -> Tensor:
        m, step = self.config.chunk_length, self.retrieval_step
        ends = [m + window * step for window in range(num_windows(tokens.shape[1], m, step))]
        found = None if find is None else find(tokens, padding, ends)
        retrieved, mask = (None, None) if found is None else (found.neighbours.tokens, found.neighbours.mask)
        logits: Tensor = self.model(tokens, retrieved, mask, padding=padding, retrieval_step=step)
        return logits

    def _find(
        self, neighbours: Tensor | None, mask: Tensor | None, database: LiveRetriever | None
    ) -> FindNeighbours | None:
        if neighbours is None:
            if mask is not None:
                raise UsageError("neighbours_mask: given without neighbours; give both, or neither.")
            if database is None:
                return None
            return LiveNeighbours(database, self.config.chunk_length, self.num_neighbours)
        if database is not None:
            raise UsageError("database: given beside neighbours; give one of them.")
        return GivenNeighbours(neighbours, mask)
