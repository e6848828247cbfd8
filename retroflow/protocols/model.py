"""What a language model that reads neighbours must do, and the configuration that builds it.

Inherit from both: what most models need not say has a default here. Nothing is imported, so that a recipe's options are
checked without torch.

Shapes: b batch, n tokens of a sequence, t new tokens, m tokens of a chunk, W windows (whole chunks, W = n // m, unless
neighbours are looked up more often), k neighbours, r = 2m tokens of a neighbour with its continuation, v vocabulary.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn


@runtime_checkable
class ModelConfig(Protocol):
    """Every choice that shapes a model: a frozen dataclass, whose other fields are the options of a recipe's `model:`.

    Attributes:
        tokenizer_option: the option that names the model's own tokenizer; None if it reads any tokens.
        compiles_by_block: whether `blocks_to_compile` may be compiled one by one, as training in several processes
            does.
        vocabulary_size: entries of the tokenizer, v; comes from the tokenizer and is no option of a recipe.
        chunk_length: tokens of a chunk, m; comes from `data.chunk_length` and is no option of a recipe.
    """

    tokenizer_option: ClassVar[str | None] = None
    compiles_by_block: ClassVar[bool] = True

    vocabulary_size: int
    chunk_length: int

    def build(self) -> "RetrievalModel":
        """Make the model with fresh weights drawn from torch's generator; on the meta device without any."""
        ...

    @property
    def retrieved_length(self) -> int:
        """Tokens of one retrieved neighbour with its continuation, r = 2m."""
        return 2 * self.chunk_length

    @property
    def retrieves(self) -> bool:
        """Whether the model reads neighbours at all."""
        return True

    @property
    def has_frozen_base(self) -> bool:
        """Whether the model reads for a pretrained base that it does not change.

        Such a base, `base` of the model, can be copied and trained as an opponent of reading.
        """
        return False

    def load_tokenizer(self) -> Any:
        """Load the model's own tokenizer, where the value of `tokenizer_option` alone does not tell how; else None."""
        return None

    def check(self, *, sequence_length: int) -> None:
        """Find out before anything is prepared whether the model can be built: look for its files.

        Args:
            sequence_length: tokens of a training sequence.

        Raises:
            UsageError: it cannot, or cannot read sequences of this length.
        """
        return  # not empty, or mypy takes the method for abstract

    def located_in(self, folder: Path) -> Self:
        """Return the configuration read from a saved model's folder, with the files in it that `build` needs."""
        return self


@runtime_checkable
class GenerationCache(Protocol):
    """What a model keeps between calls of `extend`.

    Attributes:
        length: tokens seen so far, padding counted.
    """

    length: int

    def select(self, rows: "Tensor", /) -> None:
        """Keep the rows int64 [c] of the batch, in this order."""
        ...

    def join(self, other: Self, length: int, /) -> None:
        """Append the rows of another cache, which is used up, when both have just ended a window.

        Both have `length` tokens afterwards: padding is added at the left of their rows, or what all rows have is
        dropped, by a multiple of the retrieval step. A server lets requests join those that are running.

        Args:
            other: of the same model and step, with as many neighbours.
            length: at least that of the longest row without padding.
        """
        ...


@runtime_checkable
class RetrievalModel(Protocol):
    """A causal language model that reads neighbours; also a `torch.nn.Module`.

        class MyModel(nn.Module, RetrievalModel): ...

    Attributes:
        max_length: the most tokens that it can read; None for any number.
        lookups_read: how many of the newest lookups a position reads.
        context_length: tokens that a pretrained base was made for, with which the report compares reading to the same
            neighbours in the base's prompt. Without retrieval the model must be that base. None if there is no base.
        keeps_narrow_copy: whether it computes with a bfloat16 copy of its weights under autocast, so that no call has
            to convert them.
        config: what the model was built from, or the same sizes in other words.
    """

    max_length: int | None = None
    keeps_narrow_copy: bool = False
    lookups_read: int = 1
    context_length: int | None = None
    config: Any

    def forward(
        self,
        tokens: "Tensor",
        retrieved: "Tensor | None" = None,
        retrieved_mask: "Tensor | None" = None,
        *,
        padding: "Tensor | None" = None,
        retrieval_step: int | None = None,
    ) -> "Tensor":
        """Predict every next token.

        Args:
            tokens: int64 [b, n], values in [0, v), n >= 1; n need not be a multiple of m.
            retrieved: int64 [b, W, k, r]: for each whole chunk its neighbours, each followed by its continuation; None
                switches retrieval off.
            retrieved_mask: bool [b, W, k, r], or [b, W, k] for whole neighbours, True where a token was
                retrieved; what stands elsewhere does not matter. None means all were.
            padding: int64 [b], tokens at the left of each row that are padding: no other position sees them. None for
                no padding.
            retrieval_step: s, tokens between two lookups, 1 to m; None means m. With s < m there are
                W = (n - m) // s + 1 windows instead of chunks (`retroflow.model.windows`).

        Returns:
            float [b, n, v] logits; position t is independent of tokens after t, and of the neighbours of chunk u
            (from 0) unless t >= (u + 1) * m - 1. Those of padding mean nothing.

        Raises:
            InvalidShapeError: shapes, dtypes or values that do not fit the configuration.
        """
        ...

    def loss(
        self,
        tokens: "Tensor",
        targets: "Tensor",
        retrieved: "Tensor | None" = None,
        retrieved_mask: "Tensor | None" = None,
        padding: "Tensor | None" = None,
    ) -> "Tensor":
        """Sum the loss of each sequence.

        Args:
            tokens: as in `forward`.
            targets: int64 [b, n], the token to predict at each position, -100 where none is.
            retrieved: as in `forward`.
            retrieved_mask: as in `forward`.
            padding: as in `forward`; given where a model is trained on questions, and nothing is predicted there.

        Returns:
            float32 [b] (float64 of a float64 model), nats summed over the positions with a target.

        Raises:
            InvalidShapeError: as in `forward`; targets of another shape, or outside the vocabulary.
        """
        ...

    def hidden(
        self, tokens: "Tensor", retrieved: "Tensor | None" = None, retrieved_mask: "Tensor | None" = None
    ) -> "Tensor":
        """Return the last states, whose products with `output_weights` are the logits.

        `retroflow compare` needs them for losses of long prompts and for kNN-LM. The default refuses.

        Args:
            tokens: as in `forward`.
            retrieved: as in `forward`.
            retrieved_mask: as in `forward`.

        Returns:
            float [b, n, d].

        Raises:
            InvalidShapeError: as in `forward`.
            UsageError: the model does not give them.
        """
        raise _without_states(self)

    def output_weights(self) -> "Tensor":
        """Return the output matrix, float [v, d].

        Raises:
            UsageError: the model does not give it.
        """
        raise _without_states(self)

    def last_feed_forward(self) -> "nn.Module":
        """Return the feed-forward layer of the last block, as `hidden` runs it; under autocast as it runs there.

        kNN-LM compares its inputs, float [b, n, d] or [b * n, d].

        Raises:
            UsageError: the model does not give it.
        """
        raise _without_states(self)

    def forget(self) -> None:
        """Drop what earlier calls left to save work, so that the next one computes as the first one did."""
        return

    def new_cache(self, *, padding: "Tensor | None" = None, retrieval_step: int | None = None) -> Any:
        """Begin generation: return an empty `GenerationCache`, which `extend` fills.

        Args:
            padding: int64 [b], as in `forward`.
            retrieval_step: as in `forward`.

        Raises:
            InvalidShapeError: a retrieval step outside 1 to m.
        """
        ...

    def extend(
        self,
        tokens: "Tensor",
        cache: Any,
        retrieved: "Tensor | None" = None,
        retrieved_mask: "Tensor | None" = None,
    ) -> "Tensor":
        """Predict what follows more tokens, without gradients: `forward` on all tokens so far.

        Args:
            tokens: int64 [b, t], t >= 1, those that follow what the cache has seen.
            cache: from `new_cache`; advanced by t tokens.
            retrieved: int64 [b, W, k, r] for the W windows that these tokens close; None where nothing was looked up.
            retrieved_mask: as in `forward`.

        Returns:
            float [b, t, v] logits.

        Raises:
            InvalidShapeError: as in `forward`; rows that are not those of the cache. The cache is as before.
        """
        ...

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and SHA256SUMS into a new or empty folder, whole or not at all.

        `retroflow.model.pretrained.save_pretrained` does it; the name it is given is the model's in the registry.

        Raises:
            UsageError: the folder holds something.
            RetroflowError: it cannot be written.
        """
        ...

    def save_without_base(self, folder: str | Path) -> None:
        """Write a model as `save_pretrained` does, but for the pretrained base that it was made on and did not change.

        The folder names the base and refuses another one. The default refuses: most models have no base.

        Raises:
            UsageError: the folder holds something, or there is no such base.
            RetroflowError: it cannot be written.
        """
        from retroflow.errors import UsageError

        raise UsageError(
            f"a {type(self).__name__} has no pretrained base that could be left out; write it whole, "
            "with save_pretrained, or by retroflow export without options."
        )

    def retrieval_parameters(self) -> set[str]:
        """Names of the trained parameters that a loss without retrieved text does not reach.

        The default finds out by such a loss, on the meta device if the model is there. Override it for a model that
        cannot run there.
        """
        import torch

        model: Any = self
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        tokens = torch.zeros(1, self.config.chunk_length, dtype=torch.int64)
        loss = self.loss(tokens, tokens).sum()
        if not loss.requires_grad:
            return set(trained)
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        return {name for name, gradient in zip(trained, gradients, strict=True) if gradient is None}

    @property
    def blocks_to_shard(self) -> "list[nn.Module]":
        """What FSDP gathers, computes and frees one by one; the rest is gathered once for a forward and backward pass.

        A weight that several parts share can be in none of them.
        """
        return []

    @property
    def blocks_to_recompute(self) -> "list[nn.Module]":
        """What activation checkpointing computes again in the backward pass."""
        return []

    @property
    def blocks_to_compile(self) -> "list[nn.Module]":
        """What is compiled one by one when several processes train."""
        return []

    def unsharded_state(self) -> "dict[str, Tensor]":
        """State that can only be computed from unsharded weights, such as a checksum; read on rank 0."""
        return {}

    def load_unsharded_state(self, state: "dict[str, Tensor]") -> None:
        """Take rank 0's `unsharded_state`, on every rank, before the weights are sharded; not called with none."""
        return


def _without_states(model: RetrievalModel) -> Exception:
    from retroflow.errors import UsageError

    return UsageError(
        f"a {type(model).__name__} does not give its last states (`hidden`, `output_weights`, `last_feed_forward`), "
        "which in-context retrieval and kNN-LM need; implement them, or leave out these rows."
    )
