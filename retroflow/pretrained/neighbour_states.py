"""What a frozen base makes of retrieved text: the keys and values of its layers, computed once for each neighbour.

A neighbour runs through the base alone, `[sink] + N + F`, causally. What its tokens leave in each layer depends on the
neighbour's text and on nothing else, so it is kept for whoever retrieves the same text again, in a store of bounded
size. The sink, a token that a text begins with, is left out of it: a language model rests its attention on the first
token, and several such places would spoil the softmax that reads the neighbours.

Positions: token i of a neighbour of r tokens stands at i - r, so that every neighbour ends where the sequence begins.
Learned positions count from 0 instead, and the sink has it.

Shapes: U texts, t tokens of a text, L reading layers, g heads of keys, h features of a head.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from retroflow.pretrained.base_models import fingerprint
from retroflow.pretrained.narrow_base import NarrowBase, has_adapters, version_of
from retroflow.pretrained.neighbour_reader import ARGUMENT
from retroflow.pretrained.state_store import StateStore

TOKENS_AT_ONCE = 2048
"""Retrieved tokens that run through the base together."""

Text = tuple[tuple[int, ...], tuple[int, ...]]
"""A neighbour's tokens and their places in it, from 0; a place is left out where nothing was retrieved."""


class Capture:
    """Takes keys and values from the layers that a text runs through.

    Attributes:
        states: number of a layer, from 1 -> its keys and values float [U, g, t, h].
    """

    def __init__(self) -> None:
        self.states: dict[int, tuple[Tensor, Tensor]] = {}

    def take(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keep the keys and values float [U, g, t, h] that a layer attends with."""
        self.states[layer] = keys, values


class NeighbourStates:
    """Computes the states of neighbours, and keeps those that were used last.

    Args:
        layers: those that read, from 1.
        retrieved_length: r.
        sink: the token that a text begins with.
        learned_positions: whether the base has learned positions and not rotary ones.
        most_bytes: how much is kept between calls; 0 keeps nothing.
        store: folder that also keeps them on disk, and how many bytes; None for none.

    Attributes:
        narrow: runs texts under autocast.
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        retrieved_length: int,
        sink: int,
        learned_positions: bool,
        most_bytes: int,
        store: tuple[Path, int] | None = None,
    ) -> None:
        self._layers, self._length, self._sink = tuple(layers), retrieved_length, sink
        self._learned_positions, self._most_bytes = learned_positions, most_bytes
        self._store, self._opened = store, dict[tuple[int, int], StateStore]()
        self.narrow = NarrowBase()
        self._kept: OrderedDict[Any, Tensor] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "NeighbourStates":
        return NeighbourStates(
            self._layers,
            retrieved_length=self._length,
            sink=self._sink,
            learned_positions=self._learned_positions,
            most_bytes=self._most_bytes,
            store=self._store,
        )

    @property
    def num_bytes(self) -> int:
        """What is kept now."""
        return self._num_bytes

    def forget(self) -> None:
        """Drop what is kept in memory."""
        with self._lock:
            self._kept.clear()
            self._num_bytes = 0

    def of(self, base: PreTrainedModel, texts: Iterable[Text], *, most: int) -> dict[Text, Tensor]:
        """Give the states of texts, each computed once.

        Args:
            base: that the texts run through.
            texts: any number, equal ones among them, none empty.
            most: how many texts there can be, the same on all ranks.

        Returns:
            text -> float [L, 2, g, t, h], keys and values of each reading layer.
        """
        device = base.device
        autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        weights, keeps = list(base.parameters()), not has_adapters(base)
        # The last bits of what runs together depend on the others. In training in full precision on a CPU, where a
        # resumed run ends with the bits of an unbroken one though it begins with nothing kept, each text runs alone.
        exact = device.type == "cpu" and (autocast or base.dtype) != torch.bfloat16 and self._most_bytes > 0
        alone = exact and torch.is_grad_enabled()
        made_by = (device, base.dtype, autocast, alone, version_of(weights))
        found: dict[Text, Tensor] = {}
        missing: list[Text] = []
        with self._lock:
            for text in dict.fromkeys(texts):
                state = self._kept.get((text, made_by)) if keeps else None
                if state is None:
                    missing.append(text)
                else:
                    self._kept.move_to_end((text, made_by))
                    found[text] = state
        is_sharded = any(isinstance(weight, DTensor) for weight in weights)
        is_stored = keeps and not is_sharded and self._store is not None
        store = self._open_store(base, made_by[-1]) if is_stored else None
        how = [device.type, str(base.dtype), str(autocast), alone]
        stored = {} if store is None else {text: store.read([text, how]) for text in missing}
        read = {text: state.to(device) for text, state in stored.items() if state is not None}
        self._keep({(text, made_by): state for text, state in read.items()})
        found |= read
        missing = [text for text in missing if text not in read]
        missing.sort(key=lambda text: len(text[0]))
        batches = [[text] for text in missing] if alone else list(_batches(missing))
        if missing:
            base = self.narrow.of(base)
        if is_sharded:
            # Ranks gather weights together, so that each runs as many passes, whatever it has kept.
            passes = -(-most // (1 if alone else max(1, TOKENS_AT_ONCE // (1 + self._length))))
            for _ in range(passes - len(batches)):
                self._compute(base, [((self._sink,), (0,))], autocast)
        for batch in batches:
            computed = self._compute(base, batch, autocast)
            found |= computed
            if keeps:
                self._keep({(text, made_by): state for text, state in computed.items()})
            if store is not None:
                for text, state in computed.items():
                    store.write([text, how], state)
        return found

    def _open_store(self, base: PreTrainedModel, version: tuple[int, int]) -> StateStore:
        """Open the store for a base, and again for weights that were changed in place."""
        with self._lock:
            if version not in self._opened:
                assert self._store is not None
                folder, most_bytes = self._store
                made_of = {
                    "version": 1,
                    "base": bytes(fingerprint(base).tolist()).hex(),
                    "layers": self._layers,
                    "retrieved_length": self._length,
                    "sink": self._sink,
                }
                self._opened = {version: StateStore(folder, made_of, most_bytes)}
            return self._opened[version]

    def _keep(self, states: dict[Any, Tensor]) -> None:
        with self._lock:
            for key, state in states.items():
                if key not in self._kept and state.nbytes <= self._most_bytes and not state.requires_grad:
                    self._kept[key] = state
                    self._num_bytes += state.nbytes
            while self._num_bytes > self._most_bytes:
                self._num_bytes -= self._kept.popitem(last=False)[1].nbytes

    def _compute(self, base: PreTrainedModel, texts: list[Text], autocast: torch.dtype | None) -> dict[Text, Tensor]:
        """Run texts of like length through the base together; the shorter ones are followed by padding."""
        device = base.device
        longest = len(texts[-1][0])
        first = 1 if self._learned_positions else -self._length
        tokens = torch.full((len(texts), 1 + longest), self._sink)
        positions = torch.full((len(texts), 1 + longest), first)
        positions[:, 0] = first - 1
        for row, (ids, places) in enumerate(texts):
            tokens[row, 1 : 1 + len(ids)] = torch.tensor(ids)
            positions[row, 1 : 1 + len(ids)] += torch.tensor(places)
        capture = Capture()
        trains = any(parameter.requires_grad for parameter in base.parameters())
        # States that are kept may be read in training, where tensors of inference mode cannot be.
        is_narrow = base.dtype == torch.bfloat16
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(trains and torch.is_grad_enabled()),
            torch.autocast(device.type, autocast, enabled=autocast is not None and not is_narrow),
        ):
            base.base_model(
                input_ids=tokens.to(device),
                position_ids=positions.to(device),
                attention_mask=torch.ones_like(tokens, device=device),  # else gaps in positions mean packed texts
                use_cache=False,
                **{ARGUMENT: capture},
            )
            dtype = autocast or capture.states[self._layers[0]][1].dtype  # rotated keys may come in a wider one
            pairs = [torch.stack([kind.to(dtype) for kind in capture.states[layer]]) for layer in self._layers]
            layers = torch.stack(pairs)  # [L, 2, U, g, t, h]
            return {
                text: layers[:, :, row, :, 1 : 1 + len(text[0])].clone(memory_format=torch.contiguous_format)
                for row, text in enumerate(texts)
            }


def _batches(texts: list[Text]) -> Iterable[list[Text]]:
    """Cut texts, the shorter ones first, into parts of bounded size."""
    batch: list[Text] = []
    for text in texts:
        if batch and (len(batch) + 1) * (1 + len(text[0])) > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch
