"""States of neighbours on disk: the same logits, no pass after a restart, a bound, and refusals."""

import contextlib

import pytest
import torch

from retroflow.errors import DamagedDataError, UsageError
from retroflow.pretrained import neighbour_states
from retroflow.pretrained.retrofit import RetrofitModel
from tests.pretrained.bases import VOCABULARY, make_base, make_batch
from tests.pretrained.test_inherited import make_options

pytestmark = pytest.mark.filterwarnings("ignore")


def make_model(folder=None, *, base=None, **changes):
    store = {} if folder is None else {"neighbour_store": str(folder)}
    return RetrofitModel(make_options(**store, **changes), base or make_base("llama")).eval()


@pytest.fixture
def passes(monkeypatch):
    """Texts that ran through the base, in each pass."""
    seen, compute = [], neighbour_states.NeighbourStates._compute
    monkeypatch.setattr(
        neighbour_states.NeighbourStates,
        "_compute",
        lambda self, base, texts, autocast: (seen.append(len(texts)), compute(self, base, texts, autocast))[1],
    )
    return seen


@torch.no_grad()
@pytest.mark.parametrize("bf16", [False, True])
def test_a_restart_computes_nothing_and_gives_the_same_bits(tmp_path, passes, capsys, bf16):
    batch = make_batch()
    precision = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
    with precision:
        wanted = make_model()(*batch)
        passes.clear()
        assert torch.equal(make_model(tmp_path / "store")(*batch), wanted) and passes
        assert "neighbours, 0.00 GiB now, at most 4.00 GiB (model.neighbour_store_gib)" in capsys.readouterr().err
        passes.clear()
        again = make_model(tmp_path / "store")
        assert torch.equal(again(*batch), wanted) and not passes
        assert torch.equal(again.loss(batch[0], *batch), make_model().loss(batch[0], *batch))
        (dtype,) = {state.dtype for state in again.retrieval.states._kept.values()}
    assert dtype == (torch.bfloat16 if bf16 else torch.float32)


@torch.no_grad()
def test_what_is_on_disk_is_bounded_and_the_oldest_goes_first(tmp_path, passes):
    tokens, retrieved, _ = make_batch(num_rows=1, length=8, num_neighbours=1)
    make_model(tmp_path)(tokens, retrieved)
    files = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert len(files) == 2
    small = make_model(tmp_path, neighbour_store_gib=2.5 * files[0] / (1 << 30), neighbour_cache_gib=0.0)
    small(tokens[:, :4], retrieved[:, :1])
    small(tokens[:, :4], (retrieved[:, :1] + 1) % VOCABULARY)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    passes.clear()
    small(tokens[:, :4], retrieved[:, :1])
    assert not passes
    small(tokens[:, :4], retrieved[:, 1:])
    assert passes == [1]


@torch.no_grad()
def test_a_damaged_state_is_refused(tmp_path):
    batch = make_batch(num_rows=1, length=4, num_neighbours=1)
    make_model(tmp_path)(*batch)
    (file,) = tmp_path.glob("*.safetensors")
    content = file.read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        file.write_bytes(damaged)
        with pytest.raises(DamagedDataError, match=rf"{file.name}: damaged .*Delete it; it is computed again\."):
            make_model(tmp_path)(*batch)
    file.unlink()
    make_model(tmp_path)(*batch)
    assert file.exists()


@torch.no_grad()
def test_a_foreign_folder_is_refused(tmp_path):
    batch, base = make_batch(), make_base("llama")
    model = make_model(tmp_path / "store", base=base)
    model(*batch)
    with pytest.raises(UsageError, match="holds states of another base, other layers or another length"):
        make_model(tmp_path / "store", reading_layers=(2, 3))(*batch)
    base.model.layers[0].mlp.up_proj.weight.mul_(2.0)
    with pytest.raises(UsageError, match="holds states of another base"):
        model(*batch)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r'model\.neighbour_store: ".*" holds other files and no store\.json'):
        make_model(tmp_path)(*batch)


def test_a_saved_model_names_no_store(tmp_path):
    model = make_model(tmp_path / "store")
    model.save_pretrained(tmp_path / "model")
    assert RetrofitModel.from_pretrained(tmp_path / "model").options.neighbour_store is None
