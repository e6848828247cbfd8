"""kNN-LM: a model's own prediction mixed with the next tokens of similar places in the database.

    p(token) = (1 - weight) p_LM(token) + weight p_kNN(token)
    p_kNN(token) = the sum of softmax(-d / temperature) over those of the k nearest keys whose value is the token

One key for each token of the database: the input of the last block's feed-forward layer (after its norm), float16, as
the model computes it without retrieval over sequences as long as the evaluated ones; its value is the next token. d is
the squared Euclidean distance to the same state at the evaluated position. Source: Khandelwal et al. 2020
(arXiv:1911.00172), section 2, and section 5 for the state; the distance, its temperature and k = 1024 as in
neulab/knn-transformers.

Tokens of documents that occur in the evaluated text are left out. Weight and temperature are those with the lowest
loss on tokens of their own: the evaluated documents are divided in two, and each half is mixed as is best for the other
(`halves`).

The search is exact, by matrix products, up to `EXACT_KEYS` keys, and by faiss's inverted lists above. Of a database
with more tokens than `most_tokens` sequences are drawn at random. Those in which neighbours of the evaluated text were
found would be a choice that has seen what is predicted.

Shapes: b sequences, n tokens of a sequence, t predicted tokens, d features, K keys, k neighbours, v vocabulary.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retroflow.components import create_retriever
from retroflow.data import Batch, SequenceDataset
from retroflow.data.batch import NOT_PREDICTED
from retroflow.errors import UsageError
from retroflow.model.loss import token_losses
from retroflow.pipeline.lookups import own_documents
from retroflow.pipeline.splits import Splits
from retroflow.planning.placement import Placement
from retroflow.protocols import Int64Array
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.store.chunk_store import ChunkSource

NEIGHBOURS = 1024

MOST_TOKENS = 1 << 17
"""Keys by default: 0.15 GB of 576 features, and some minutes of computation on a CPU."""

EXACT_KEYS = 1 << 19

TUNING_SEQUENCES = 32
"""The most sequences that are tuned on, half of whose tokens count for each half of the text."""

WEIGHTS = (0.01, 0.02, *(round(0.05 * place, 2) for place in range(1, 20)))

_TEMPERATURES = tuple(2.0**power for power in range(-10, 4))
"""Times the median distance of the nearest key."""


@dataclass(frozen=True)
class KnnOptions:
    """The size of a kNN-LM.

    Attributes:
        k: neighbours of a token.
        most_tokens: the most keys; whole sequences are used, at least one.
        batch_size: sequences that are computed together.
        seed: of the sequences that are used of a larger database.
    """

    k: int = NEIGHBOURS
    most_tokens: int = MOST_TOKENS
    batch_size: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Mixture:
    """How much of the neighbours' prediction is taken, and how far it reaches.

    Attributes:
        weight: of the neighbours' prediction, 0 to 1 (the paper's lambda).
        temperature: divides the squared distances.
    """

    weight: float
    temperature: float


UNTUNED = Mixture(0.25, 1.0)
"""The paper's values for WikiText-103, where there is nothing to tune on."""


@dataclass(frozen=True)
class Datastore:
    """The tokens of a database with their states, searchable.

    Attributes:
        values: int64 [K], the tokens.
        retriever: over the keys.
        database_tokens: predicted tokens of the whole database.
        dimension: d.
        k: neighbours that are searched for.
    """

    values: Int64Array
    retriever: CheckedRetriever
    database_tokens: int
    dimension: int
    k: int

    @property
    def share(self) -> float:
        """Share of the database's tokens that are keys, 0 to 1."""
        return len(self.values) / max(1, self.database_tokens)

    def describe(self) -> str:
        """Describe in a sentence what is searched, and how."""
        memory = len(self.values) * self.dimension * 2 / 1e9
        how = "exactly" if self.retriever.capabilities.exact else "by faiss's inverted lists"
        return (
            f"{len(self.values):,} of {self.database_tokens:,} tokens of the database ({self.share:.1%}) are keys "
            f"({memory:.2f} GB), searched {how}, k = {self.k}"
        )

    def search(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Find the neighbours of states float [t, d].

        Returns:
            Squared distances float32 [t, k], inf where there is none, and tokens int64 [t, k].
        """
        found = self.retriever.search(states.float().cpu().numpy(), self.k)
        tokens = np.where(found.ids >= 0, self.values[found.ids], NOT_PREDICTED)
        return torch.from_numpy(-found.scores), torch.from_numpy(tokens)


def halves(splits: Splits, sequences: Int64Array, *, seed: int) -> NDArray[np.bool_]:
    """Divide the text in two, so that each half is mixed as is best for the other one.

    Args:
        splits: the data.
        sequences: int64 [s], of the validation split, that are measured.
        seed: of the division.

    Returns:
        bool [N], for each validation chunk its half. The documents of the measured sequences are divided at random; if
        there is only one, its measured chunks in a first and a second half.
    """
    documents = np.asarray(splits.valid_chunks.document_ids[:])
    own = documents_of(splits, sequences)
    if len(own) > 1:
        second = np.random.default_rng([seed, len(own)]).permutation(own)[: len(own) // 2]
        return np.isin(documents, second)
    middle = int(sequences[len(sequences) // 2]) * splits.sequence_chunks
    return np.arange(len(documents)) >= middle + (splits.sequence_chunks // 2 if len(sequences) % 2 else 0)


def half_of_positions(half: NDArray[np.bool_], starts: Int64Array, length: int, chunk_length: int) -> Tensor:
    """Return the half of what each position predicts, bool [b, n], for sequences from chunks int64 [b]."""
    chunks = starts[:, None] + np.arange(1, length + 1) // chunk_length
    return torch.from_numpy(half[np.minimum(chunks, len(half) - 1)])


def documents_of(splits: Splits, sequences: Int64Array) -> Int64Array:
    """Return the documents of sequences of the validation split, ascending, with those of their last targets."""
    return np.unique(own_documents(splits, sequences))


def sequences_to_use(database: SequenceDataset, options: KnnOptions) -> Int64Array:
    """Return the sequences of a database whose tokens become keys, ascending."""
    order = np.random.default_rng([options.seed, len(database)]).permutation(len(database))
    most = options.most_tokens // (database.sequence_chunks * database.chunks.chunk_length)
    return np.sort(order[: max(1, most)])


def build_datastore(
    model: Any,
    placement: Placement,
    database: SequenceDataset,
    options: KnnOptions,
    *,
    excluded: Int64Array,
    advance: Callable[[int], None] = lambda sequences: None,
) -> Datastore:
    """Compute the keys of a database.

    Args:
        model: a `RetrievalModel` that gives its last states, in evaluation mode.
        placement: its device and precision.
        database: its sequences.
        options: how many keys and neighbours.
        excluded: int64, documents whose tokens are no values.
        advance: called with the number of finished sequences; may raise to stop.

    Raises:
        UsageError: the model does not give its states, or nothing of the database may be used.
    """
    chunks, sequences = database.chunks, sequences_to_use(database, options)
    keys, values, first = [], [], 0
    for batch in database.in_order(options.batch_size, sequences):
        rows = sequences[first : first + len(batch.tokens), None] * database.sequence_chunks
        first += len(batch.tokens)
        # Position t holds the state before token t + 1, whose chunk tells the document.
        of_values = rows + np.arange(1, batch.tokens.shape[1] + 1) // chunks.chunk_length
        own = np.asarray(chunks.document_ids[np.minimum(of_values, len(chunks) - 1)])
        is_kept = (batch.targets != NOT_PREDICTED) & torch.from_numpy(~np.isin(own, excluded))
        keys.append(_states(model, placement, batch)[1].cpu()[is_kept].to(torch.float16).numpy())
        values.append(batch.targets[is_kept].numpy())
        advance(len(batch.tokens))
    tokens = np.concatenate(values)
    if not len(tokens):
        raise UsageError("kNN-LM: all documents of the database occur in the evaluated text. Leave out the row knn_lm.")
    retriever = create_retriever({"name": "exact" if len(tokens) <= EXACT_KEYS else "faiss"})
    vectors = np.concatenate(keys)
    retriever.build(vectors)
    return Datastore(tokens, retriever, _predicted(chunks), vectors.shape[1], min(options.k, len(tokens)))


def tune(
    model: Any,
    placement: Placement,
    datastore: Datastore,
    batches: Iterable[Batch],
    *,
    advance: Callable[[int], None] = lambda sequences: None,
) -> Mixture:
    """Return the mixture of a grid with the lowest loss on batches.

    Args:
        model: as of `build_datastore`.
        placement: its device and precision.
        datastore: the keys.
        batches: with targets that are not measured with this mixture.
        advance: called with the number of finished sequences; may raise to stop.
    """
    alone, distances, hits = [], [], []
    for batch in batches:
        nats, found, tokens, is_wanted = _compared(model, placement, datastore, batch)
        alone.append(nats)
        distances.append(found)
        hits.append(tokens == batch.targets[is_wanted][:, None])
        advance(len(batch.tokens))
    if not sum(map(len, alone)):
        return UNTUNED
    scale = float(torch.cat([each[:, 0] for each in distances]).median()) or 1.0
    lowest, best = math.inf, UNTUNED
    for temperature in (scale * times for times in _TEMPERATURES):
        log_shares = torch.cat([_log_shares(*each, temperature) for each in zip(distances, hits, strict=True)])
        for weight in WEIGHTS:
            total = float(_mixed(torch.cat(alone), log_shares, weight).sum(dtype=torch.float64))
            if total < lowest:
                lowest, best = total, Mixture(weight, temperature)
    return best


def knn_losses(
    model: Any, placement: Placement, datastore: Datastore, *mixtures: Mixture
) -> Callable[[Batch], tuple[Tensor, ...]]:
    """Return a function from a batch to nats of each position, 0 where nothing is predicted.

    Args:
        model: as of `build_datastore`; it is used without retrieval.
        placement: its device and precision.
        datastore: the keys.
        mixtures: for each of them the function returns float32 [b, n].
    """

    def losses(batch: Batch) -> tuple[Tensor, ...]:
        alone, distances, tokens, is_wanted = _compared(model, placement, datastore, batch)
        is_hit = tokens == batch.targets[is_wanted][:, None]
        mixed = (_mixed(alone, _log_shares(distances, is_hit, each.temperature), each.weight) for each in mixtures)
        return tuple(torch.zeros(batch.targets.shape).masked_scatter(is_wanted, nats.float()) for nats in mixed)

    return losses


def _predicted(database: ChunkSource) -> int:
    """Count the tokens of a database with the ends of its documents: what could be keys."""
    lengths = np.asarray(database.lengths[:]).astype(np.int64)
    return int(np.minimum(lengths + 1, database.chunk_length).sum()) - 1


@torch.no_grad()
def _states(model: Any, placement: Placement, batch: Batch) -> tuple[Tensor, Tensor]:
    """Run a batch without retrieval; return the last states, and those that kNN-LM compares, float [b, n, d] each."""
    seen: list[Tensor] = []
    with torch.autocast(placement.accelerator, torch.bfloat16, enabled=placement.uses_bf16):
        hook = model.last_feed_forward().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            hidden = model.hidden(batch.tokens.to(placement.device))
        finally:
            hook.remove()
    return hidden, seen[-1].reshape(*batch.tokens.shape, -1)


@torch.no_grad()
def _compared(
    model: Any, placement: Placement, datastore: Datastore, batch: Batch
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return of predicted tokens nats float [t] alone, distances float [t, k] and tokens [t, k]; and bool [b, n]."""
    hidden, states = _states(model, placement, batch)
    targets = batch.targets.to(placement.device)
    with torch.autocast(placement.accelerator, torch.bfloat16, enabled=placement.uses_bf16):
        nats = token_losses(hidden.flatten(0, 1), model.output_weights(), targets.flatten())
    is_wanted = batch.targets.cpu() != NOT_PREDICTED
    found = datastore.search(states.cpu()[is_wanted])
    return nats.view(targets.shape).cpu()[is_wanted], *found, is_wanted


def _log_shares(distances: Tensor, is_hit: Tensor, temperature: float) -> Tensor:
    """Return float64 [t], the logarithm of the share of a softmax over neighbours [t, k] that predicts the target."""
    weights = -distances.double() / temperature
    return weights.masked_fill(~is_hit, -torch.inf).logsumexp(-1) - weights.logsumexp(-1)


def _mixed(alone: Tensor, log_shares: Tensor, weight: float) -> Tensor:
    """Return float64 [t], nats of the mixture of two predictions."""
    return -torch.logaddexp(math.log1p(-weight) - alone.double(), math.log(weight) + log_shares)
