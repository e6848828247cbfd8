"""A RETRO-fit on two processes: DDP and FSDP compute what one process computes, and read each other's checkpoints."""

from pathlib import Path

import pytest
import torch

from retroflow.components import recipe_schema
from retroflow.corpus.tokenizer import train_tokenizer
from retroflow.generation.export import export
from retroflow.generation.exported import load_exported
from retroflow.pretrained.base_models import fingerprint, load_base
from retroflow.recipe import load
from retroflow.testing.tiny_corpus import write_tiny_corpus
from retroflow.training.fit import fit as fit_here
from tests.distributed.in_two import in_two
from tests.distributed.runs import RECIPE, TWO, fit, metrics, newest, prepare_in
from tests.distributed.sharded_retrofit import compare_and_estimate
from tests.pretrained.bases import FAMILIES, make_base

pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

RETROFIT = """\
model: {name: retrofit, base: gpt2, encoder_width: 16, encoder_layers: 1, encoder_heads: 2}
optimizer:"""
LOGGED = ("train/loss", "train/gradient_norm", "validation/loss_on", "validation/loss_off")
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "families",
    [
        pytest.param(["gpt2", "gpt_neox", "llama", "qwen2_tied"], id="some"),
        pytest.param([*FAMILIES, "qwen2_tied"], id="all", marks=SLOW),
    ],
)
def test_a_retrofit_is_cut_between_two_ranks_and_their_estimate_is_one_process_s(tmp_path, families):
    bases = []
    for family in families:
        tied = {"tie_word_embeddings": True} if family.endswith("_tied") else {}
        make_base(family.removesuffix("_tied"), **tied).save_pretrained(tmp_path / family)
        bases += [(str(tmp_path / family), unfreeze) for unfreeze in (False, True)]
    (tmp_path / "ranks").mkdir()
    in_two(compare_and_estimate, bases, tmp_path, folder=tmp_path / "ranks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with artifacts, a recipe for a RETRO-fit, and two bases: one that ties its embeddings, one rotary."""
    folder = tmp_path_factory.mktemp("retrofit")
    tokenizer = train_tokenizer([write_tiny_corpus(folder).read_text(encoding="utf-8")], 300)
    for family in ("gpt2", "llama"):
        make_base(family, vocab_size=tokenizer.vocabulary_size + 3).save_pretrained(folder / family)
        tokenizer.save(folder / family)
    before, _, after = RECIPE.replace("tokenizer: train, vocabulary_size: 300, ", "").partition("model:")
    (folder / "tiny.yaml").write_text(before + RETROFIT + after.partition("optimizer:")[2])
    prepare_in(folder)
    return folder


def logged(folder, runs):
    return {name: [line[name] for line in metrics(folder, runs) if name in line] for name in LOGGED}


def assert_close(folder, first, second):
    one, two = logged(folder, first), logged(folder, second)
    for name, values in one.items():
        assert values and two[name] == pytest.approx(values, abs=1e-6), name


@pytest.mark.parametrize(
    ("family", "unfreeze", "strategy"),
    [
        ("gpt2", "true", "fsdp"),
        ("llama", "false", "ddp"),
        *(
            pytest.param(family, unfreeze, strategy, marks=SLOW)
            for family in ("gpt2", "llama")
            for unfreeze in ("true", "false")
            for strategy in TWO
            if (family, unfreeze, strategy) not in (("gpt2", "true", "fsdp"), ("llama", "false", "ddp"))
        ),
    ],
)
def test_two_ranks_equal_one_process(folder, monkeypatch, family, unfreeze, strategy):
    monkeypatch.chdir(folder)
    words = (f"model.base={family}", f"model.unfreeze={unfreeze}", "trainer.log_every=1")
    before = fingerprint(load_base(family))
    alone, of_two = (f"{family}-{unfreeze}-{strategy}-{name}" for name in ("one", "two"))
    fit_here(load(Path("tiny.yaml"), (*words, f"trainer.runs_folder={alone}"), schema=recipe_schema()))
    ended = fit(folder, *words, *TWO[strategy], f"trainer.runs_folder={of_two}")
    assert ended.code == 0 and not ended.leftovers(), ended.errors
    assert_close(folder, alone, of_two)
    one, two = newest(folder, alone), newest(folder, of_two)
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert any(".base." in name for name in two["state_dict"]) == (unfreeze == "true")
    states, sharded = one["optimizer_states"][0], two["optimizer_states"][0]
    assert states["state"].keys() == sharded["state"].keys()
    assert states["param_groups"] == sharded["param_groups"]  # with the names of their parameters

    export(Path(of_two, "tiny/0001"), Path(of_two, "exported"), say=print)
    exported = load_exported(Path(of_two, "exported")).model
    weights = dict(exported.named_parameters(remove_duplicate=False))
    for name in two["state_dict"].keys() - {"model.base_fingerprint"}:
        assert torch.equal(weights[name.removeprefix("model.")], two["state_dict"][name]), name
    assert torch.equal(fingerprint(exported.base), before) == (unfreeze == "false")


@pytest.mark.slow
@pytest.mark.parametrize("unfreeze", ["false", "true"])
def test_a_trained_inherited_reader_on_two_ranks_equals_one_process(folder, monkeypatch, unfreeze):
    """Ranks that have kept other neighbours run as many passes under FSDP; else they would wait for each other."""
    monkeypatch.chdir(folder)
    usual = ("model.encoder_width=896", "model.encoder_layers=2", "model.encoder_heads=16")  # of the other reader
    model = ("model.base=llama", "model.reader=inherit", "model.trained=[scale, query, answer, layers]", "model.rank=4")
    words = (*usual, *model, f"model.unfreeze={unfreeze}", "trainer.log_every=1", "trainer.retrieval_dropout=0")
    words, runs = (*words, "trainer.random_neighbours=0.3"), f"inherited-{unfreeze}"
    fit_here(load(Path("tiny.yaml"), (*words, f"trainer.runs_folder={runs}-one"), schema=recipe_schema()))
    for strategy, of_two in TWO.items():
        ended = fit(folder, *words, *of_two, f"trainer.runs_folder={runs}-{strategy}")
        assert ended.code == 0 and not ended.leftovers(), ended.errors
        assert_close(folder, f"{runs}-one", f"{runs}-{strategy}")
    one, fsdp = newest(folder, f"{runs}-one"), newest(folder, f"{runs}-fsdp")
    assert one["state_dict"].keys() == fsdp["state_dict"].keys()
    assert any(".base." in name for name in one["state_dict"]) == (unfreeze == "true")


@pytest.mark.slow
@pytest.mark.parametrize("unfreeze", ["false", "true"])
def test_strategies_go_on_from_each_other(folder, unfreeze):
    """FSDP on 2, then DDP on 2, then FSDP on 2 again, then one process: one run."""
    words = (f"model.unfreeze={unfreeze}", "trainer.log_every=1", "trainer.checkpoint_every=2", "--resume")
    whole, parts = (*words, f"trainer.runs_folder=whole-{unfreeze}"), (*words, f"trainer.runs_folder=parts-{unfreeze}")
    assert fit(folder, *whole).code == 0
    for strategy, step in (("fsdp", 4), ("ddp", 6), ("fsdp", 8)):
        ended = fit(folder, *TWO[strategy], *parts, fault=f"0 step-{step:08d}.ckpt kill 0 after")
        assert ended.code == 1, ended.errors
    ended = fit(folder, *parts)
    assert ended.code == 0 and "from step 8" in ended.errors, ended.errors
    assert_close(folder, f"whole-{unfreeze}", f"parts-{unfreeze}")
