"""The notebook runs from top to bottom, in one namespace, and prints what it shows."""

import contextlib
import io
import json

import pytest

from tests.house.tree import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_s_cells_run_and_print_what_it_shows(path) -> None:
    plots = pytest.importorskip("matplotlib.pyplot")
    plots.switch_backend("agg")
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    drawn = 0
    for cell in cells:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), path.name, "exec"), names)
        shown = "".join("".join(out["text"]) for out in cell["outputs"] if out["output_type"] == "stream")
        assert printed.getvalue() == shown
        pictures = sum("image/png" in out.get("data", {}) for out in cell["outputs"])
        assert len(plots.get_fignums()) == pictures
        drawn += pictures
        plots.close("all")
    assert drawn == 1 and printed.getvalue() == "equal to 1e-6: True\n"
