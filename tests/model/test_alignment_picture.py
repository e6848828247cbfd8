"""docs/pictures/alignment.svg is what its script draws, and what a model does."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from tests.model.random_models import changed, inputs, make

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"
SCRIPT = runpy.run_path(str(FOLDER / "draw_alignment.py"))
PICTURE = (FOLDER / "alignment.svg").read_text(encoding="utf-8")
CELLS = {
    tuple(map(int, cell))
    for cell in re.findall(r'data-step="(\d+)" data-window="(\d+)" data-position="(\d+)"', PICTURE)
}


def test_the_stored_picture_is_the_script_s():
    assert SCRIPT["draw"]() == PICTURE


@pytest.mark.parametrize("step", SCRIPT["STEPS"])
def test_every_cell_that_reads_in_the_picture_reads_in_the_model_and_no_other(step):
    # CCA in the last layer alone: nothing carries what an earlier position read to a later one.
    model = make(num_layers=2, cca_layers=(2,), chunk_length=SCRIPT["CHUNK_LENGTH"])
    tokens, retrieved, mask = inputs(model, rows=1, length=SCRIPT["NUM_POSITIONS"], hole=0, step=step)
    reads = set()
    with torch.no_grad():
        before = model(tokens, retrieved, mask, retrieval_step=step)
        for window in range(retrieved.shape[1]):
            other = retrieved.clone()
            other[:, window] = changed(retrieved[:, window])
            after = model(tokens, other, mask, retrieval_step=step)
            moved = ((after - before).abs().amax(-1) > 1e-9)[0].nonzero().flatten()
            reads |= {(step, window, position) for position in moved.tolist()}
    assert {cell for cell in CELLS if cell[0] == step} == reads


def test_every_test_that_the_model_s_page_names_exists():
    page = (FOLDER.parent / "model.md").read_text(encoding="utf-8")
    tests = FOLDER.parents[1] / "tests"
    files = re.findall(r"`(?:tests/)?([\w/]*\w+\.py)`", page)
    assert len(files) > 10
    for name in files:
        if name.startswith(("test_", "reference")):
            assert (tests / "model" / name).is_file(), name
        elif "test_" in name:
            assert (tests / name).is_file(), name
    written = "".join(path.read_text(encoding="utf-8") for path in (tests / "model").glob("*.py"))
    for name in re.findall(r"`(test_\w+)`", page):
        assert f"def {name}(" in written, name
