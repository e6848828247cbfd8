"""The paper's models: parameter counts against Tables 2 and 10 of Borgeaud et al. 2022, on the meta device."""

import dataclasses
import re

import pytest
import torch

from retroflow.model.config import RetroConfig
from retroflow.model.paper_sizes import Retro1B5, Retro7B5, Retro172M, Retro425M

PAPER_VOCABULARY = 128_000
SIZES = {
    # class: (baseline, RETRO) in Table 2, without embeddings; Table 10's column "with embeddings"; ours, counted
    Retro172M: (132e6, 172e6, 247e6, 172_522_112),
    Retro425M: (368e6, 425e6, 564e6, 425_509_632),
    Retro1B5: (1_309e6, 1_451e6, 1_574e6, 1_451_482_368),
    Retro7B5: (6_982e6, 7_532e6, 7_505e6, 7_531_840_768),
}
WITHOUT_RETRIEVAL = {"cca_layers": (), "encoder_cross_attention_layers": ()}
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: size.__name__)


def make(size, **changes):
    return size(vocabulary_size=PAPER_VOCABULARY, chunk_length=64, **changes)


def count(config, *, embeddings=False):
    with torch.device("meta"):
        model = config.build()
    return sum(p.numel() for name, p in model.named_parameters() if embeddings or "embedding" not in name)


@sizes
def test_parameters_without_embeddings_are_those_of_table_2(size):
    _, paper, _, ours = SIZES[size]
    assert count(make(size)) == ours
    assert ours == pytest.approx(paper, rel=0.004)


@sizes
def test_the_decoder_alone_is_the_baseline_of_table_2(size):
    assert count(make(size, **WITHOUT_RETRIEVAL)) == pytest.approx(SIZES[size][0], rel=0.002)


@sizes
def test_table_10_counts_the_baseline_and_one_embedding_of_128000_tokens(size):
    _, retro, with_embeddings, _ = SIZES[size]
    assert count(make(size, **WITHOUT_RETRIEVAL), embeddings=True) == pytest.approx(with_embeddings, rel=0.0025)
    # It cannot be RETRO's own count: with one such embedding, shared by decoder and encoder, that is 7 % or more above.
    assert retro + PAPER_VOCABULARY * make(size).width > 1.07 * with_embeddings
    assert count(make(size), embeddings=True) > 1.08 * with_embeddings


@sizes
def test_rotary_positions_have_no_distance_matrices(size):
    paper = SIZES[size][1]
    config = make(size, positions="rotary")
    assert -0.10 < count(config) / paper - 1 < -0.085
    inner, layers = config.num_heads * config.head_width, config.num_layers + len(config.cca_layers)
    encoder = (config.encoder_layers + len(config.encoder_cross_attention_layers)) * config.encoder_width * 16 * 64
    assert count(make(size)) - count(config) == layers * config.width * inner + encoder


@sizes
def test_layers_of_chunked_cross_attention_are_every_third_from_the_sixth(size):
    config = make(size)
    assert config.cca_layers == tuple(range(6, config.num_layers + 1, 3))


def test_table_10_s_layers_do_not_give_table_2_s_parameters():
    for size, layers in ((Retro1B5, tuple(range(9, 25, 3))), (Retro7B5, tuple(range(9, 31, 3)))):
        off = abs(count(make(size, cca_layers=layers)) / SIZES[size][1] - 1)
        assert off > 0.007 > 10 * abs(count(make(size)) / SIZES[size][1] - 1)


def test_an_encoder_with_the_decoder_s_heads_does_not_give_table_2_s_parameters():
    config = make(Retro425M, encoder_heads=12, encoder_head_width=128)
    assert count(config) > 1.01 * SIZES[Retro425M][1]


def test_the_encoder_s_roughly_19m_are_its_self_attention_and_feed_forward_layers():
    with torch.device("meta"):
        encoder = make(Retro172M).build().encoder
    plain = sum(p.numel() for name, p in encoder.named_parameters() if not re.search("cross|distance|embedding", name))
    assert plain == pytest.approx(19e6, rel=0.07)
    assert (
        sum(p.numel() for name, p in encoder.named_parameters() if "embedding" not in name) == 26_613_888
    )  # with cross-attention and distance matrices


@sizes
def test_sizes_are_defaults_that_can_be_overridden(size):
    config = make(size, width=32, head_width=4, num_layers=2, cca_layers=(1,), positions="rotary")
    assert isinstance(config, RetroConfig)
    assert {f.name for f in dataclasses.fields(config)} == {f.name for f in dataclasses.fields(RetroConfig)}
    assert (config.width, config.positions, config.encoder_head_width) == (32, "rotary", 64)


@sizes
def test_other_options_are_the_paper_s(size):
    config = make(size)
    assert config.encoder_width == 896
    assert (config.encoder_layers, config.encoder_cross_attention_layers) == (2, (1,))
    assert not (config.smear or config.next_token_values or config.copy_initialisation or config.cca_scale)
    assert not config.share_encoder_embeddings
    assert config.feed_forward_width in (0, 4 * config.width)
