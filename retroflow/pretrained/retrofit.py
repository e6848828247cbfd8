"""RETRO-fitting: a pretrained Hugging Face decoder learns to read neighbours (Borgeaud et al. 2022, section 4.2).

Shapes: b batch, n tokens of a sequence, t new tokens, m tokens of a chunk, W windows (whole chunks, W = n // m, unless
neighbours are looked up more often), k neighbours, r = 2m tokens of a neighbour with its continuation, d features of
the base, e encoder features, v vocabulary of the base.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from retroflow.errors import InvalidShapeError, UsageError
from retroflow.model.cache import extend_with_cache
from retroflow.model.inputs import check_extension, check_padding, check_sequence, check_targets, check_tokens
from retroflow.model.loss import IGNORED, token_losses
from retroflow.model.neighbours import Encode, Encoded, Retrieved
from retroflow.model.windows import checked_step
from retroflow.pretrained.base_cache import RetrofitCache, padded_arguments
from retroflow.pretrained.base_models import (
    family_of,
    fingerprint,
    layers_of,
    load_base,
    longest_sequence,
    reading_config,
)
from retroflow.pretrained.inherited_reader import InheritedReader
from retroflow.pretrained.joint_attention import JointReading, attach_maps
from retroflow.pretrained.neighbour_reader import ARGUMENT, Call, RetrievalParts, attach
from retroflow.pretrained.reading_maps import make_maps
from retroflow.pretrained.retrofit_config import RetrofitConfig
from retroflow.protocols.model import RetrievalModel

FINGERPRINT = "base_fingerprint"
"""Key of a frozen base's fingerprint in the state dict, where its weights would be."""


class RetrofitModel(nn.Module, RetrievalModel):
    """A base with retrieval, used like a Retro: the same `config`, `forward`, `loss`, `new_cache`, `extend`.

    The base is an ordinary transformers model in `base`, whose own calls do not change. All new parts are in
    `retrieval`. A frozen base (the default) stays in evaluation mode while no adapter in it is trained. The state dict
    has its fingerprint instead of its weights: loading it into a RETRO-fit of another base is refused.

    Args:
        options: of the recipe.
        base: a causal language model of one of the families in `base_models.FAMILIES`; hooks are attached to it.

    Attributes:
        config: the sizes, as a RetroConfig.
        has_whole_state: whether the state dict has the weights of a frozen base after all, as PEFT and others expect.

    Raises:
        UsageError: the options do not fit the base.
    """

    def __init__(self, options: RetrofitConfig, base: PreTrainedModel) -> None:
        super().__init__()
        family = family_of(base.config, options.base)
        self.options, self.base, self.has_whole_state = options, base, False
        self.config = reading_config(options, base.config)
        embedded: int = self._embedding().weight.shape[1]
        if embedded != self.config.width:
            raise UsageError(
                f'model.base: "{options.base}" embeds tokens with {embedded} features and computes with '
                f"{self.config.width}; only a base with equal numbers can be RETRO-fitted."
            )
        self.max_length = longest_sequence(options, base.config)
        self.context_length = self.max_length or int(base.config.max_position_embeddings)
        self._inherits = options.reader == "inherit"
        self.retrieval: Any  # PEFT wraps it if it trains it as a whole (modules_to_save)
        if self._inherits:
            layers = {layer: self.blocks[layer - 1] for layer in self.config.cca_layers}
            self.lookups_read, self.keeps_narrow_copy = options.lookups_read, not options.unfreeze
            self.retrieval = InheritedReader(
                base,
                self.config.cca_layers,
                options,
                learned_positions=family.max_length(base.config) is not None,
                maps=make_maps(options, self.config, layers),
            )
            attach_maps(layers, family.attention, options.trained)
        else:
            self.retrieval = RetrievalParts(self.config)
            attach(self.blocks, family.attention, self.config.cca_layers)
        self._fingerprint: Tensor | None = None
        if not options.unfreeze:
            base.requires_grad_(False)
            self.register_state_dict_post_hook(_leave_out_base)
            self.register_load_state_dict_pre_hook(_put_in_base)
        self.train()  # a base is in evaluation mode if loaded from files, in training mode if made from its config

    @classmethod
    def build(cls, options: RetrofitConfig) -> "RetrofitModel":
        """Load the base and attach fresh parts to it.

        Raises:
            UsageError: there is no such base, or the options do not fit it.
            DamagedDataError: its files cannot be read.
        """
        return cls(options, load_base(options.base))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors, SHA256SUMS and the base into a new folder, whole or not at all.

        Raises:
            UsageError: the folder is not empty.
            RetroflowError: it cannot be written.
        """
        from retroflow.pretrained import retrofit_folder

        retrofit_folder.save(self, Path(folder), with_base=True)

    def save_without_base(self, folder: str | Path) -> None:
        """As `save_pretrained`, but a frozen base is only named; its fingerprint refuses another one.

        Raises:
            UsageError: the folder is not empty, or the base was trained.
            RetroflowError: it cannot be written.
        """
        from retroflow.pretrained import retrofit_folder

        retrofit_folder.save(self, Path(folder), with_base=False)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "RetrofitModel":
        """Load what `save_pretrained` or `retroflow export` wrote; in evaluation mode, float32, on the CPU.

        Raises:
            UsageError: not a model folder, one of another model, or its base is missing or another one.
            DamagedDataError: a file is missing, changed, or not of this model.
        """
        from retroflow.pretrained import retrofit_folder

        return retrofit_folder.load(Path(folder))

    @property
    def blocks(self) -> list[nn.Module]:
        """The base's decoder layers."""
        return layers_of(self.base, family_of(self.base.config, self.options.base))

    @property
    def blocks_to_recompute(self) -> list[nn.Module]:
        """Layers that activation checkpointing recomputes, as `Retro.blocks_to_recompute`."""
        blocks = self.blocks
        if not self._inherits:
            del blocks[self.retrieval.first_layer - 1]
            blocks += self.retrieval.encoder.blocks
        return blocks

    @property
    def blocks_to_shard(self) -> list[nn.Module]:
        """Each layer of the base, its CCA, and the neighbour encoder; none of a base that reads by itself.

        How often its layers run for neighbours differs between ranks, and all ranks must gather equally often.
        """
        if self._inherits:
            return []
        return [*self.blocks, *self.retrieval.readers.values(), *self.retrieval.encoder.blocks]

    def unsharded_state(self) -> dict[str, Tensor]:
        """State that needs unsharded weights: the fingerprint of a frozen base, uint8 [32]."""
        return {} if self.options.unfreeze else {FINGERPRINT: self.base_fingerprint}

    def load_unsharded_state(self, facts: dict[str, Tensor]) -> None:
        """Set the state from unsharded weights: the base's fingerprint, uint8 [32]."""
        self._fingerprint = facts[FINGERPRINT]

    def retrieval_parameters(self) -> set[str]:
        """Names of the parameters without a gradient if nothing is retrieved."""
        return {name for name, _ in self.named_parameters() if name.startswith("retrieval.")}

    @property
    def base_fingerprint(self) -> Tensor:
        """SHA-256 of the base's weights, uint8 [32]; computed once for a frozen base in our own training."""
        if self._fingerprint is None or self.options.unfreeze or self.has_whole_state:
            self._fingerprint = fingerprint(self.base)
        return self._fingerprint

    def train(self, mode: bool = True) -> "RetrofitModel":
        """Switch to training mode, except a frozen base without adapters in training, whose dropout stays off."""
        super().train(mode)
        if not self.options.unfreeze and not any(parameter.requires_grad for parameter in self.base.parameters()):
            self.base.eval()
        return self

    def forward(
        self,
        tokens: Tensor,
        retrieved: Tensor | None = None,
        retrieved_mask: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        retrieval_step: int | None = None,
    ) -> Tensor:
        """Predict every next token.

        Arguments as of `RetrievalModel.forward`; without `retrieved` the logits are the base's, bit for bit.

        Returns:
            float [b, n, v] logits; those of padding mean nothing.

        Raises:
            InvalidShapeError: shapes, dtypes or values that do not fit the configuration.
        """
        step = checked_step(retrieval_step, self.config.chunk_length)
        _, arguments = self._arguments(tokens, retrieved, retrieved_mask, padding, step)
        with self.running() as base:
            return cast(Tensor, base(input_ids=tokens, use_cache=False, **arguments).logits)

    def _arguments(
        self, tokens: Tensor, retrieved: Tensor | None, mask: Tensor | None, padding: Tensor | None, step: int
    ) -> tuple[Any, dict[str, Any]]:
        """Check what `forward` is given; return what the base reads, and its keyword arguments."""
        check_tokens(self.config, tokens)
        self._check_room(tokens, 0)
        check_padding(padding, num_rows=tokens.shape[0], length=tokens.shape[1])
        found = check_sequence(self.config, tokens, retrieved, mask, step)
        state = None if padding is None else self._empty_cache(step, padding)
        is_token = None if state is None else state.is_token(0, tokens.shape[1])
        arguments = {} if state is None else padded_arguments(state, tokens.shape[1])
        call: Any = self._call(tokens, self._encoding(found, step, is_token), is_token)
        if self._inherits:
            call = self.retrieval.of_sequences(self.base, tokens, found, step=step, padding=padding)
        return call, arguments | {ARGUMENT: call}

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        retrieved: Tensor | None = None,
        retrieved_mask: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Sum the loss of each sequence, float [b], in nats; as `RetrievalModel.loss`."""
        check_targets(self.config, targets, tokens)
        hidden, wanted = self.hidden(tokens, retrieved, retrieved_mask, padding).flatten(0, 1), targets.flatten()
        matrix = self.output_weights()
        if not torch.is_grad_enabled():
            is_wanted = wanted != IGNORED  # a prompt needs no logits
            losses = token_losses(hidden[is_wanted], matrix, wanted[is_wanted])
            return losses.new_zeros(wanted.shape).masked_scatter(is_wanted, losses).view(targets.shape).sum(-1)
        return token_losses(hidden, matrix, wanted).view(targets.shape).sum(-1)

    def forget(self) -> None:
        """Drop the states of neighbours that were kept."""
        if self._inherits:
            self.retrieval.states.forget()

    def hidden(
        self,
        tokens: Tensor,
        retrieved: Tensor | None = None,
        retrieved_mask: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Return the base's last hidden states, float [b, n, d]; arguments and errors as in `forward`."""
        call, arguments = self._arguments(tokens, retrieved, retrieved_mask, padding, self.config.chunk_length)
        with self.running() as base:
            hidden: Tensor = base.base_model(input_ids=tokens, use_cache=False, **arguments).last_hidden_state
        if isinstance(call, JointReading) and not call.reads:  # every weight needs a gradient in every step
            hidden = hidden + 0.0 * sum(parameter.sum() for parameter in self.retrieval.parameters())
        return hidden

    def output_weights(self) -> Tensor:
        """Return the base's output matrix, float [v, d]."""
        return cast(nn.Linear, self.base.get_output_embeddings()).weight

    def last_feed_forward(self) -> nn.Module:
        """Return the feed-forward layer of the base's last block; of OPT its first linear map."""
        family = family_of(self.base.config, self.options.base)
        with self.running() as base:
            return layers_of(base, family)[-1].get_submodule(family.feed_forward)

    def new_cache(self, *, padding: Tensor | None = None, retrieval_step: int | None = None) -> RetrofitCache:
        """Return an empty cache for `extend`.

        Args:
            padding: int64 [b], as in `forward`.
            retrieval_step: as in `forward`.

        Raises:
            InvalidShapeError: a retrieval step outside 1 to m.
        """
        return self._empty_cache(checked_step(retrieval_step, self.config.chunk_length), padding)

    @torch.no_grad()
    def extend(
        self,
        tokens: Tensor,
        cache: RetrofitCache,
        retrieved: Tensor | None = None,
        retrieved_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of new tokens: `forward` on all tokens so far, for the cost of the new ones.

        Args:
            tokens: int64 [b, t], t >= 1, following those in the cache.
            cache: from `new_cache`; advanced by t tokens.
            retrieved: int64 [b, W, k, r] for the W = `cache.num_new_windows(t)` windows that these tokens close; None
                if nothing was retrieved.
            retrieved_mask: as in `forward`.

        Returns:
            float [b, t, v] logits.

        Raises:
            InvalidShapeError: as in `forward`.
        """
        found = check_extension(self.config, tokens, cache, retrieved, retrieved_mask)
        self._check_room(tokens, cache.length)
        if self._inherits:
            return self.retrieval.extend(self.base, tokens, cache, found)
        encode = partial(self.retrieval.encoder, embedding=self._embedding())
        return extend_with_cache(tokens, cache, found, encode, self._run_after)

    def _run_after(self, tokens: Tensor, cache: RetrofitCache, encode: Encode | None) -> tuple[Tensor, Encoded | None]:
        """Run tokens int64 [b, t] that follow those of a cache; returns float [b, t, v], and the neighbours."""
        length, end = tokens.shape[1], cache.length + tokens.shape[1]
        arguments = padded_arguments(cache, length)
        call = self._call(tokens, encode, cache.is_token(cache.length, end), cache)
        output = self.base(
            input_ids=tokens, past_key_values=cache.past, use_cache=True, **arguments, **{ARGUMENT: call}
        )
        return output.logits, None if call is None else call.encoded

    def _call(
        self, tokens: Tensor, encode: Encode | None, is_token: Tensor | None = None, cache: RetrofitCache | None = None
    ) -> Call | None:
        """Return the value of the keyword argument for the base; None if retrieval is off."""
        if encode is None or self._inherits:
            return None
        token_query = None
        if self.retrieval.smear is not None:
            embedded = self._embedding()(tokens)
            if is_token is not None:
                embedded = embedded * is_token[..., None]
            token_query = self.retrieval.smear(embedded, None if cache is None else cache.previous)
            if cache is not None:
                cache.previous = embedded[:, -1:]
        return Call(self.retrieval, encode, token_query)

    def _encoding(self, found: Retrieved | None, step: int, is_token: Tensor | None = None) -> Encode | None:
        if found is None or self._inherits:
            return None
        return partial(self.retrieval.encoder, found, embedding=self._embedding(), step=step, is_token=is_token)

    def _embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.base.get_input_embeddings())

    def running(self) -> AbstractContextManager[PreTrainedModel]:
        """Yield what runs a text: the base, or under bfloat16 autocast its copy."""
        return self.retrieval.states.narrow.running(self.base) if self._inherits else nullcontext(self.base)

    def _empty_cache(self, step: int, padding: Tensor | None) -> RetrofitCache:
        return RetrofitCache(self.base.config, chunk_length=self.config.chunk_length, step=step, padding=padding)

    def _check_room(self, tokens: Tensor, before: int) -> None:
        """Check that the base has positions for tokens int64 [b, t] after `before` others."""
        if not len(tokens):
            raise InvalidShapeError(
                f"tokens: {list(tokens.shape)} given; a base needs at least one row, so leave out empty batches."
            )
        if self.max_length is not None and before + tokens.shape[1] > self.max_length:
            raise InvalidShapeError(
                f"tokens: {before + tokens.shape[1]} in a row given; the base has positions for {self.max_length}. Use "
                "shorter sequences (data.sequence_chunks * data.chunk_length), or a base with rotary positions."
            )


def _leave_out_base(model: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    assert isinstance(model, RetrofitModel)
    if model.has_whole_state:
        return
    for name in [name for name in state if name.startswith(f"{prefix}base.")]:
        del state[name]
    state[prefix + FINGERPRINT] = model.base_fingerprint


def _put_in_base(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(model, RetrofitModel)
    stored = state.pop(prefix + FINGERPRINT, None)
    if stored is None:
        return
    own = model.base_fingerprint
    if not torch.equal(stored.cpu(), own):
        theirs, ours = (bytes(digest.cpu().tolist()).hex()[:16] for digest in (stored, own))
        raise UsageError(
            f'model.base: "{model.options.base}" has other weights (fingerprint {ours}) than the base that these '
            f"weights were trained on ({theirs}). Give the base they were trained on."
        )
    state |= {f"{prefix}base.{name}": value for name, value in model.base.state_dict().items()}
