"""A RETRO-fit is its base until it reads, reads nothing too early, and generates what it computes; in float64."""

import copy
import threading

import pytest
import torch

from retroflow.errors import InvalidShapeError, UsageError
from retroflow.model.inputs import check_sequence
from retroflow.pretrained import base_models
from retroflow.pretrained.base_models import layers_of
from retroflow.pretrained.neighbour_reader import ARGUMENT
from retroflow.pretrained.retrofit import RetrofitModel
from retroflow.pretrained.retrofit_config import default_cca_layers
from tests.pretrained.bases import (
    CHUNK,
    DEEP,
    FAMILIES,
    VOCABULARY,
    assert_rows_can_join,
    make_base,
    make_batch,
    make_options,
    make_retrofit,
)

TOLERANCE = 1e-11
AIDS = {
    "plain": {},
    "smear": {"smear": True},
    "all aids": {
        "smear": True,
        "next_token_values": True,
        "copy_initialisation": True,
        "share_encoder_embeddings": True,
        "cca_scale": 25.0,
        "cca_positions": False,
    },
}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def changed_positions(before, after):
    """Positions of [b, n, v] where any logit differs."""
    return ((before - after).abs() > TOLERANCE).any(-1).any(0).nonzero().flatten().tolist()


@torch.no_grad()
def test_retrieval_off_is_the_base_bit_for_bit(family):
    tokens, _, _ = make_batch()
    wanted = make_base(family, dtype=torch.float64)(tokens).logits
    model = make_retrofit(family)
    assert torch.equal(model(tokens), wanted)
    assert torch.equal(model.base(tokens).logits, wanted)


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gpt_neox"])  # it adds both at once
def test_a_layer_adds_to_its_input_what_its_attention_gives_and_nothing_before(family):
    """Then x + ATTN(x) + CCA is what the layer goes on with: only the sum of input and attention matters."""
    base = make_base(family, dtype=torch.float64)
    row = base_models.FAMILIES[family.removesuffix("_sequential")]
    layer = layers_of(base, row)[3]
    torch.manual_seed(0)
    moved, shift = torch.zeros(1, 7, 16), torch.randn(1, 7, 16).double()

    def before(layer, args, kwargs):
        x = args[0] if args else kwargs["hidden_states"]
        return (x + moved, *args[1:]) if args else args, kwargs if args else kwargs | {"hidden_states": x + moved}

    attended = torch.randn(1, 7, 16).double()

    def after(attention, args, output):
        return (attended - moved, *output[1:]) if isinstance(output, tuple) else attended - moved

    layer.register_forward_pre_hook(before, with_kwargs=True)
    layer.get_submodule(row.attention).register_forward_hook(after)
    tokens, _, _ = make_batch(num_rows=1, length=7)
    wanted = base(tokens).logits
    moved = shift
    torch.testing.assert_close(base(tokens).logits, wanted, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("aids", AIDS)
def test_step_0_is_the_base_with_retrieval_on(family, aids):
    tokens, retrieved, mask = make_batch()
    model = make_retrofit(family, open_gates=False, **AIDS[aids])
    assert torch.equal(model(tokens, retrieved, mask), model(tokens))


def test_step_0_learns_to_read(family):
    """The zero that makes step 0 the base must not be one that training cannot leave."""
    tokens, retrieved, mask = make_batch()
    for aids in AIDS.values():
        model = make_retrofit(family, open_gates=False, **aids)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
        losses = []
        for _ in range(8):
            loss = model.loss(tokens[:, :-1], tokens[:, 1:], retrieved, mask).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 1.0, aids


@torch.no_grad()
def test_a_token_changes_no_logit_before_it(family):
    tokens, retrieved, mask = make_batch(num_rows=1)
    model = make_retrofit(family, cca_layers=(2, 5))
    before = model(tokens, retrieved, mask)
    for position in range(tokens.shape[1]):
        other = tokens.clone()
        other[:, position] = (other[:, position] + 1) % VOCABULARY
        changed = changed_positions(before, model(other, retrieved, mask))
        assert changed[0] == position


@torch.no_grad()
def test_neighbours_of_a_chunk_change_nothing_before_the_last_token_of_that_chunk(family):
    tokens, retrieved, mask = make_batch(num_rows=1)
    model = make_retrofit(family, cca_layers=(2, 5), smear=True)
    before = model(tokens, retrieved, mask)
    for chunk in range(retrieved.shape[1]):
        other = retrieved.clone()
        other[:, chunk] = (other[:, chunk] + 1) % VOCABULARY
        changed = changed_positions(before, model(tokens, other, mask))
        assert changed[0] == (chunk + 1) * CHUNK - 1


@torch.no_grad()
def test_every_prefix_gives_the_same_logits(family):
    tokens, retrieved, mask = make_batch(num_rows=1)
    model = make_retrofit(family, smear=True)
    whole = model(tokens, retrieved, mask)
    for length in range(1, tokens.shape[1] + 1):
        chunks = length // CHUNK
        prefix = model(tokens[:, :length], retrieved[:, :chunks], mask[:, :chunks])
        torch.testing.assert_close(prefix, whole[:, :length], rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_a_masked_neighbour_equals_an_absent_one_and_none_at_all_equals_off(family):
    tokens, retrieved, _ = make_batch()
    model = make_retrofit(family)
    second_masked = torch.ones(retrieved.shape[:3], dtype=torch.bool)
    second_masked[:, :, 1] = False
    torch.testing.assert_close(
        model(tokens, retrieved, second_masked), model(tokens, retrieved[:, :, :1]), rtol=0, atol=TOLERANCE
    )
    torch.testing.assert_close(
        model(tokens, retrieved, torch.zeros_like(second_masked)), model(tokens), rtol=0, atol=TOLERANCE
    )


@torch.no_grad()
def test_order_of_neighbours_does_not_matter_but_order_inside_one_does():
    tokens, retrieved, mask = make_batch()
    model = make_retrofit()
    before = model(tokens, retrieved, mask)
    torch.testing.assert_close(model(tokens, retrieved.flip(2), mask.flip(2)), before, rtol=0, atol=TOLERANCE)
    assert not torch.allclose(model(tokens, retrieved.flip(3), mask.flip(3)), before)


@torch.no_grad()
def test_rows_do_not_influence_each_other(family):
    tokens, retrieved, mask = make_batch(num_rows=3)
    model = make_retrofit(family)
    whole = model(tokens, retrieved, mask)
    for row in range(3):
        alone = model(tokens[row : row + 1], retrieved[row : row + 1], mask[row : row + 1])
        torch.testing.assert_close(alone[0], whole[row], rtol=0, atol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize(
    ("step", "lengths", "padding"),
    [
        (CHUNK, (1,) * 13, None),
        (CHUNK, (5, 1, 3, 4), None),
        (CHUNK, (8, 1, 4), (0, 6)),
        (1, (3, 10), None),
        (1, (8, 5), (2, 3)),
        (3, (13,), (0, 6)),
    ],
)
def test_cached_equals_uncached(family, step, lengths, padding):
    tokens, retrieved, mask = make_batch(step=step)
    padding = None if padding is None else torch.tensor(padding)
    model = make_retrofit(family, cca_layers=(2, 5), smear=True, next_token_values=True)
    wanted = model(tokens, retrieved, mask, padding=padding, retrieval_step=step)
    cache, parts, window = model.new_cache(padding=padding, retrieval_step=step), [], 0
    for part in tokens.split(lengths, dim=1):
        new = slice(window, window := window + cache.num_new_windows(part.shape[1]))
        parts.append(model.extend(part, cache, retrieved[:, new], mask[:, new]))
    given = torch.ones_like(tokens, dtype=torch.bool)
    if padding is not None:
        given = torch.arange(tokens.shape[1]) >= padding[:, None]
    torch.testing.assert_close(torch.cat(parts, dim=1)[given], wanted[given], rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_cache_can_keep_some_rows(family):
    tokens, retrieved, mask = make_batch(num_rows=3)
    model = make_retrofit(family, smear=True)
    rows = torch.tensor([2, 0])
    cache = model.new_cache(padding=torch.tensor([0, 5, 2]))
    model.extend(tokens[:, :9], cache, retrieved[:, :2], mask[:, :2])
    wanted = model.extend(tokens[:, 9:], copy.deepcopy(cache), retrieved[:, 2:], mask[:, 2:])
    cache.select(rows)
    kept = model.extend(tokens[rows, 9:], cache, retrieved[rows, 2:], mask[rows, 2:])
    torch.testing.assert_close(kept, wanted[rows], rtol=0, atol=TOLERANCE)


def test_rows_can_join_others(family):
    assert_rows_can_join(make_retrofit(family, smear=True), tolerance=TOLERANCE)


@torch.no_grad()
def test_padding_changes_no_other_position(family):
    tokens, _, _ = make_batch()
    model = make_retrofit(family)
    padded = model(tokens, padding=torch.tensor([0, 6]))
    torch.testing.assert_close(padded[1:, 6:], model(tokens[1:, 6:]), rtol=0, atol=TOLERANCE)
    assert padded.isfinite().all()


def test_loss_is_that_of_the_logits(family):
    tokens, retrieved, mask = make_batch()
    model = make_retrofit(family)
    targets = tokens.roll(-1, dims=1)
    targets[0, 3] = -100
    logits = model(tokens, retrieved, mask)
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    for with_gradients in (True, False):  # without them only what is predicted gets logits
        with torch.set_grad_enabled(with_gradients):
            loss = model.loss(tokens, targets, retrieved, mask)
        torch.testing.assert_close(loss, wanted.view(targets.shape).sum(-1))
    assert model.float().loss(tokens, targets, retrieved, mask).dtype == torch.float32


def test_gradients_reach_the_new_parts_and_nothing_of_a_frozen_base(family):
    tokens, retrieved, mask = make_batch()
    model = make_retrofit(family, cca_layers=(2, 5))
    model.train().loss(tokens, tokens, retrieved, mask).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith("retrieval."), name
        assert (parameter.grad is not None) == name.startswith("retrieval."), name


def test_unfreeze_trains_the_base_too(family):
    tokens, retrieved, mask = make_batch()
    model = make_retrofit(family, unfreeze=True)
    model.train().loss(tokens, tokens, retrieved, mask).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("mode", [False, True])
def test_a_trained_base_begins_in_training_mode_wherever_it_comes_from(mode):
    """From files it comes in evaluation mode, from its config in training mode: its dropout would differ."""
    assert make_base().train(mode).training == mode
    fresh = RetrofitModel(make_options(unfreeze=True), make_base().train(mode))
    assert all(module.training for module in fresh.modules())
    frozen = RetrofitModel(make_options(), make_base().train(mode))
    assert not any(module.training for module in frozen.base.modules()) and frozen.retrieval.training


def test_a_frozen_base_stays_in_evaluation_mode():
    base = make_base("gpt2", resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)
    tokens, _, _ = make_batch()
    frozen = make_retrofit(base=base).train()
    assert frozen.retrieval.training and not frozen.base.training
    assert torch.equal(frozen(tokens), frozen(tokens))
    unfrozen = make_retrofit(base=base, unfreeze=True).train()
    assert unfrozen.base.training and not torch.equal(unfrozen(tokens), unfrozen(tokens))


@pytest.mark.parametrize("unfreeze", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(family, unfreeze):
    """A layer that is computed again in the backward pass must find its neighbours again."""
    tokens, retrieved, mask = make_batch()
    model = make_retrofit(family, cca_layers=(2, 4, 5), smear=True, unfreeze=unfreeze).train()
    model.loss(tokens, tokens, retrieved, mask).sum().backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad()
    model.base.gradient_checkpointing_enable({"use_reentrant": False})
    model.base.train()  # transformers checkpoints in training mode only; this base has no dropout
    model.loss(tokens, tokens, retrieved, mask).sum().backward()
    for name, gradient in wanted.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=0, atol=1e-10)


@torch.no_grad()
def test_calls_in_threads_do_not_mix():
    model = make_retrofit(cca_layers=(2, 5))
    batches = [make_batch(seed=seed) for seed in range(4)]
    wanted = [model(*batch) for batch in batches]
    found = [[] for _ in batches]

    def work(index):
        with torch.no_grad():
            found[index] = [model(*batches[index]) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answers, one in zip(found, wanted, strict=True):
        assert len(answers) == 10 and all(torch.equal(answer, one) for answer in answers)


@torch.no_grad()
def test_a_call_that_fails_leaves_nothing_behind():
    model = make_retrofit()
    tokens, retrieved, mask = make_batch()
    wanted = model(tokens, retrieved, mask)
    handle = model.base.transformer.ln_f.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(tokens, retrieved, mask)
    handle.remove()
    assert torch.equal(model(tokens), model.base(tokens).logits)
    assert torch.equal(model(tokens, retrieved, mask), wanted)


@torch.no_grad()
def test_a_copy_reads_with_its_own_weights():
    model = make_retrofit()
    tokens, retrieved, mask = make_batch()
    before = model(tokens, retrieved, mask)
    other = copy.deepcopy(model)
    for parameter in other.retrieval.parameters():
        parameter.mul_(2.0)
    assert torch.equal(model(tokens, retrieved, mask), before)
    assert not torch.allclose(other(tokens, retrieved, mask), before)


@torch.no_grad()
def test_only_the_chosen_layers_read():
    tokens, retrieved, mask = make_batch()
    model = make_retrofit(cca_layers=(3,))
    states = model.base(tokens, output_hidden_states=True).hidden_states
    found = check_sequence(model.config, tokens, retrieved, mask, CHUNK)
    call = {ARGUMENT: model._call(tokens, model._encoding(found, CHUNK))}
    reading = model.base(tokens, output_hidden_states=True, **call).hidden_states
    assert all(torch.equal(states[layer], reading[layer]) for layer in range(3))
    assert not torch.equal(states[3], reading[3])


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [(1, (1,)), (2, (2,)), (3, (2,)), (5, (3,)), (6, (6,)), (12, (6, 9, 12)), (32, tuple(range(6, 33, 3)))],
)
def test_default_layers(layers, wanted):
    assert default_cca_layers(layers) == wanted
    assert all(1 <= layer <= layers for layer in wanted)


@pytest.mark.parametrize("number", [0, DEEP + 1])
def test_a_layer_that_the_base_lacks_is_refused(number):
    if number == 0:
        for wrong in ((0,), (-1, 2)):
            with pytest.raises(
                UsageError, match=r"model\.cca_layers\[0\] is .*; allowed: a whole number of at least 1"
            ):
                make_options(cca_layers=wrong)
        with pytest.raises(UsageError, match=r"model\.cca_layers is \[2, 2\], which names a layer twice"):
            make_options(cca_layers=(2, 2))
    else:
        with pytest.raises(UsageError, match=rf"model\.cca_layers.*names layer {number}.*layers 1 to {DEEP}"):
            make_retrofit(cca_layers=(number,))


def test_no_layer_at_all_is_refused():
    with pytest.raises(UsageError, match=r"model\.cca_layers is a list of 0; allowed: a list that is not empty"):
        make_options(cca_layers=())


def test_a_vocabulary_beyond_the_base_is_refused():
    with pytest.raises(UsageError, match=rf"data\.tokenizer.*{VOCABULARY + 1} tokens.*embeddings for {VOCABULARY}"):
        make_retrofit(vocabulary_size=VOCABULARY + 1)


def test_wrong_inputs_are_refused():
    model = make_retrofit()
    tokens, retrieved, mask = make_batch()
    with pytest.raises(InvalidShapeError, match="whole chunks"):
        model(tokens, retrieved[:, :1])
    with pytest.raises(InvalidShapeError, match=r"retrieved: int64 \[2, 3, k, 8\] is needed"):
        model(tokens, retrieved[..., :CHUNK])
    with pytest.raises(InvalidShapeError, match="retrieved_mask"):
        model(tokens, retrieved, mask[:, :, :1])
    with pytest.raises(InvalidShapeError, match=r"token \d+ given; the vocabulary has 60"):
        model(tokens + VOCABULARY)
    with pytest.raises(InvalidShapeError, match="length >= 1"):
        model(tokens[:, :0])
    with pytest.raises(InvalidShapeError, match="retrieval_step is 5; allowed"):
        model(tokens, retrieval_step=CHUNK + 1)


def test_more_tokens_than_learned_positions_are_refused():
    model = make_retrofit("gpt2", base=make_base("gpt2", n_positions=8))
    tokens, _, _ = make_batch()
    with pytest.raises(InvalidShapeError, match=r"13 in a row given.*positions for 8"):
        model(tokens)
    cache = model.new_cache()
    model.extend(tokens[:, :8], cache)
    with pytest.raises(InvalidShapeError, match="9 in a row given"):
        model.extend(tokens[:, 8:9], cache)


def test_an_unsupported_family_is_refused():
    base = make_base()
    base.config.model_type = "bloom"
    with pytest.raises(
        UsageError, match=r'"bloom", which cannot be RETRO-fitted.*GPT-2 \(gpt2, .*Qwen \(qwen2, .*qwen3,'
    ):
        RetrofitModel(make_options(), base)
