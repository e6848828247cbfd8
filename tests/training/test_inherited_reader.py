"""Maps on a base that reads by inheritance, trained: only they move, resuming is exact, and off stays the base."""

import pytest
import torch

import retroflow as rf
from retroflow.distributed.stop_signals import StopRequests
from retroflow.errors import RetroflowError
from retroflow.pretrained.base_models import fingerprint, load_base
from retroflow.pretrained.retrofit_config import RetrofitConfig
from retroflow.runs.checkpoint_files import list_checkpoints
from retroflow.runs.checkpoints import read_checkpoint
from retroflow.runs.resuming import choose_start
from retroflow.training.fit import train
from tests.pretrained.bases import make_base
from tests.training.conftest import WORDS
from tests.training.jobs import VOCABULARY, tiny_job, tiny_recipe
from tests.training.test_retrofit import run, state_of

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def base(tmp_path):
    make_base("llama", vocab_size=VOCABULARY + 3).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def make_job(tmp_path, base, *, trained=("scale", "query", "answer", "layers"), **trainer):
    config = RetrofitConfig(
        base=str(base), vocabulary_size=VOCABULARY, chunk_length=4, reader="inherit", trained=trained
    )
    return tiny_job(tmp_path / "runs", model=config, **({"retrieval_dropout": 0.0} | trainer))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_only_the_maps_move_and_off_stays_the_base(tmp_path, base, dropout):
    job = make_job(tmp_path, base, retrieval_dropout=dropout)
    start, record = run(job)
    model, found = job.module.model, job.module.outline
    fresh = make_job(tmp_path, base).module
    fresh.configure_model()
    trained = state_of(job)
    moved = {name for name, value in fresh.model.named_parameters() if not torch.equal(value, trained[name])}
    assert moved == model.retrieval_parameters() == found.retrieval
    assert record.steps == 12 and record.num_trained_parameters == found.num_retrieval_parameters
    assert torch.equal(fingerprint(model.base), fingerprint(load_base(str(base))))
    tokens = torch.arange(12)[None]
    assert torch.equal(model.eval()(tokens), load_base(str(base))(tokens).logits)
    checkpoint = read_checkpoint(list_checkpoints(start.run.checkpoints)[0])
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(moved)
    assert not any(".base." in name for name in checkpoint["state_dict"])


def test_a_factor_is_not_decayed(tmp_path, base):
    job = make_job(tmp_path, base)
    job.module.configure_model()
    decayed, kept = job.module.configure_optimizers()["optimizer"].param_groups
    maps = job.module.model.retrieval.maps["1"]
    assert {id(maps.factor), id(maps.offset)} <= {id(parameter) for parameter in kept["params"]}
    assert {id(maps.query.up), id(maps.answer.down)} <= {id(parameter) for parameter in decayed["params"]}
    alone = make_job(tmp_path, base, trained=("scale",))  # which leaves no matrix to decay
    alone.module.configure_model()
    assert len(alone.module.configure_optimizers()["optimizer"].param_groups) == 1


def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(tmp_path, base):
    options = {"validate_every": 6, "random_neighbours": 0.3, "random_target": "base", "distil": 0.5}
    whole = make_job(tmp_path, base, **options)
    start, _ = run(whole)
    first = sorted(start.run.checkpoints.glob("*.ckpt"))[0]
    again = make_job(tmp_path, base, **options)
    resumed = choose_start(tiny_recipe(), again.identity, runs_folder=again.runs_folder, resume=first, say=print)
    with StopRequests() as requests:
        train(again, resumed, requests)
    wanted, found = state_of(whole), state_of(again)
    assert resumed.step == 8 and all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_run_trains_generates_and_is_exported_like_any_other(attached, tmp_path):
    changes = [
        "model.trained=[scale, query, answer, layers]",
        "model.rank=4",
        "trainer.max_steps=4",
        "trainer.batch_size=2",
    ]
    untrained = rf.fit(rf.load_recipe(attached))
    changes += ["optimizer.learning_rate=0.02", "trainer.retrieval_dropout=0", "trainer.trained_opponents=true"]
    run = rf.fit(rf.load_recipe(attached, *changes))
    before, after = untrained.report["validation"], run.report["validation"]
    assert after["off"]["loss"] == before["off"]["loss"] and after["on"]["loss"] != before["on"]["loss"]
    trained = run.report["opponents"]["trained"]
    assert all(each["cpu_seconds"] >= run.report["training"]["cpu_seconds"] > 0 for each in trained.values())
    prompt = " ".join(WORDS)
    model = rf.load(run)
    (generation,) = model.generate([prompt], max_new_tokens=12)
    model.save(tmp_path / "exported")
    exported = rf.load(tmp_path / "exported", database=next((tmp_path / "artifacts").glob("index-*")))
    assert exported.generate([prompt], max_new_tokens=12)[0].tokens == generation.tokens
    again = rf.evaluate(run, "trainer.trained_opponents=false")
    assert again.opponents.trained == {} and again.measures["on"].loss == pytest.approx(after["on"]["loss"], abs=1e-6)


TRAINS = ("model.trained=[scale]", "trainer.max_steps=4")
OPPONENTS = "trainer.trained_opponents=true"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ([OPPONENTS, "model.unfreeze=true", "trainer.max_steps=4"], "trained_opponents: true .* no frozen base"),
        ([OPPONENTS], "trained_opponents: true given, but trainer.max_steps is 0"),
        ([OPPONENTS, *TRAINS, "trainer.in_context_sequences=0"], "in_context_sequences is 0"),
        ([OPPONENTS, *TRAINS, "trainer.strategy=ddp", "trainer.devices=2"], "several processes"),
        (["trainer.distil=0.5", "model.unfreeze=true", "trainer.max_steps=4"], "distil: 0.5 given, but .* frozen base"),
        (["trainer.distil=0.5", *TRAINS, "trainer.compile=true"], "distil: 0.5 given, but trainer.compile is true"),
        (["trainer.random_target=base", *TRAINS], "random_neighbours is 0: no neighbours are random"),
        (
            ["trainer.random_target=base", "trainer.random_neighbours=0.1", *TRAINS, "trainer.retrieval=false"],
            'random_target: "base" given, but trainer.retrieval is false',
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_prepared(attached, changes, complaint):
    with pytest.raises(RetroflowError, match=rf"trainer\..*{complaint}"):
        rf.fit(rf.load_recipe(attached, *changes))
    assert not (attached.parent / "artifacts").exists()


def test_a_missing_library_of_opponents_is_named(attached, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    changes = ["model.trained=[scale]", "trainer.max_steps=4", "trainer.trained_opponents=true"]
    with pytest.raises(RetroflowError, match=r'needs the library peft.*pip install "retroflow\[peft\]"'):
        rf.fit(rf.load_recipe(attached, *changes))
