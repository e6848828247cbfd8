"""A RETRO-fit trained: not one bit of a frozen base changes, only the new weights reach the optimizer and the disk."""

import pytest
import torch

from retroflow.distributed.stop_signals import StopRequests
from retroflow.errors import UsageError
from retroflow.planning.outline import outline
from retroflow.pretrained.base_models import fingerprint, load_base
from retroflow.runs.checkpoint_files import list_checkpoints
from retroflow.runs.checkpoints import read_checkpoint
from retroflow.runs.resuming import choose_start
from retroflow.training.final_report import load_trained
from retroflow.training.fit import train
from retroflow.training.summary import plan_of
from tests.pretrained.bases import make_base, make_options
from tests.training.jobs import VOCABULARY, tiny_job, tiny_recipe

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def base(tmp_path):
    make_base("gpt2", vocab_size=VOCABULARY + 3, resid_pdrop=0.1).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def make_job(tmp_path, base, *, unfreeze=False, seed=1, **trainer):
    config = make_options(base=str(base), vocabulary_size=VOCABULARY, unfreeze=unfreeze, cca_layers=(2, 5), dropout=0.1)
    return tiny_job(tmp_path / "runs", model=config, seed=seed, **trainer)


def run(job):
    start = choose_start(tiny_recipe(), job.identity, runs_folder=job.runs_folder, resume=None, say=print)
    with StopRequests() as requests:
        record = train(job, start, requests)
    return start, record


def state_of(job):
    return {name: value.detach().clone() for name, value in job.module.model.named_parameters()}


def test_not_one_bit_of_a_frozen_base_changes(tmp_path, base):
    job = make_job(tmp_path, base)
    before = fingerprint(load_base(str(base)))
    _, record = run(job)
    assert record.steps == 12
    assert torch.equal(fingerprint(job.module.model.base), before)
    fresh = make_job(tmp_path, base).module
    fresh.configure_model()
    trained = state_of(job)
    moved = {name for name, value in fresh.model.named_parameters() if not torch.equal(value, trained[name])}
    assert moved == {name for name in trained if name.startswith("retrieval.")}


def test_only_what_is_trained_reaches_the_optimizer_the_clipping_and_the_checkpoint(tmp_path, base):
    job = make_job(tmp_path, base)
    start, record = run(job)
    model, found = job.module.model, job.module.outline
    trained = sum(parameter.numel() for parameter in model.retrieval.parameters())
    assert record.num_trained_parameters == found.num_trained_parameters == trained < record.num_parameters
    optimizer = job.module.configure_optimizers()["optimizer"]
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == trained
    assert all(parameter.grad is None for parameter in model.base.parameters())
    checkpoint = read_checkpoint(list_checkpoints(start.run.checkpoints)[0])
    assert not any(".base." in name for name in checkpoint["state_dict"])
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(list(model.retrieval.parameters()))


def test_embeddings_of_a_trained_base_are_not_decayed(tmp_path, base):
    job = make_job(tmp_path, base, unfreeze=True)
    job.module.configure_model()
    decayed, kept = job.module.configure_optimizers()["optimizer"].param_groups
    tables = {
        id(table)
        for table in (job.module.model.base.transformer.wte.weight, job.module.model.base.transformer.wpe.weight)
    }
    assert tables <= {id(parameter) for parameter in kept["params"]} and kept["weight_decay"] == 0.0
    assert id(job.module.model.base.transformer.h[0].mlp.c_fc.weight) in {
        id(parameter) for parameter in decayed["params"]
    }


def test_unfreezing_moves_the_base(tmp_path, base):
    job = make_job(tmp_path, base, unfreeze=True)
    _, record = run(job)
    assert record.num_trained_parameters == record.num_parameters
    assert not torch.equal(fingerprint(job.module.model.base), fingerprint(load_base(str(base))))


@pytest.mark.parametrize("unfreeze", [False, True])
def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(tmp_path, base, unfreeze):
    options = {"unfreeze": unfreeze, "validate_every": 6}  # evaluating must leave the base's dropout as it was
    whole = make_job(tmp_path, base, **options)
    start, _ = run(whole)
    first = sorted(start.run.checkpoints.glob("*.ckpt"))[0]
    again = make_job(tmp_path, base, **options)
    resumed = choose_start(tiny_recipe(), again.identity, runs_folder=again.runs_folder, resume=first, say=print)
    with StopRequests() as requests:
        train(again, resumed, requests)
    wanted, found = state_of(whole), state_of(again)
    assert resumed.step == 8 and all(torch.equal(found[name], value) for name, value in wanted.items())


def test_activation_checkpointing_trains_to_the_same_bits(tmp_path, base):
    states = []
    for number, checkpointing in enumerate((False, True)):
        job = make_job(tmp_path / str(number), base, unfreeze=True, activation_checkpointing=checkpointing)
        run(job)
        states.append(state_of(job))
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


def test_a_checkpoint_is_refused_by_another_base(tmp_path, base):
    job = make_job(tmp_path, base)
    start, _ = run(job)
    finished = choose_start(tiny_recipe(), job.identity, runs_folder=job.runs_folder, resume=start.run.path, say=print)
    assert load_trained(make_job(tmp_path, base), finished) is not None
    torch.manual_seed(5)
    make_base("gpt2", vocab_size=VOCABULARY + 3, n_inner=20).save_pretrained(base)
    with pytest.raises(UsageError, match="has other weights"):
        load_trained(make_job(tmp_path, base), finished)


def test_nothing_to_train_is_refused(tmp_path, base):
    with pytest.raises(UsageError, match=r"trainer\.retrieval: false given.*model\.unfreeze: true"):
        make_job(tmp_path, base, retrieval=False)
    make_job(tmp_path, base, retrieval=False, unfreeze=True)


def test_outline_of_a_retrofit(base):
    frozen = outline(make_options(base=str(base), vocabulary_size=VOCABULARY))
    assert {name.split(".")[0] for name in frozen.retrieval} == {"retrieval"}
    assert {name.split(".")[0] for name in frozen.frozen} == {"base"}
    unfrozen = outline(make_options(base=str(base), vocabulary_size=VOCABULARY, unfreeze=True))
    assert unfrozen.frozen == frozenset() and unfrozen.retrieval == frozen.retrieval


def test_of_a_retrofits_memory_the_weights_are_known_the_frozen_ones_without_an_optimizer(tmp_path, base):
    job = make_job(tmp_path, base)
    model, memory = job.module.outline, plan_of(job).memory
    num_frozen = model.num_parameters - model.num_trained_parameters
    assert num_frozen > 0 and not memory.is_complete
    assert memory.total == memory.states == 16 * model.num_trained_parameters + 4 * num_frozen
