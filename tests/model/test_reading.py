"""How a sequence's neighbours are read: encoded once, and again only while a backward pass computes a block again."""

import weakref

import torch

from retroflow.model.reading import Retrieved, SequenceReading


def test_what_is_encoded_again_is_read_once_and_let_go():
    encoded = iter(torch.full((1, 2, 1, 4, 3), float(number)) for number in range(2))
    retrieved = Retrieved(torch.zeros(1, 2, 1, 4, dtype=torch.long), None)
    reading = SequenceReading(retrieved, lambda *_: next(encoded), chunk_length=2, step=2)

    def read():
        return reading.read(lambda x, encoded, mask, step: encoded, torch.zeros(1, 4, 3))

    reading.encode(torch.zeros(1, 4, 3))
    assert read().unique() == 0
    assert read().unique() == 0
    reading.encode(torch.zeros(1, 4, 3))  # activation checkpointing runs the encoding block again
    again = weakref.ref(read())
    assert again() is None  # with it go all activations of the encoder
    assert read().unique() == 0
