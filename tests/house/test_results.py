"""docs/results.md is what its script makes of the dated results."""

import runpy

from tests.house.tree import ROOT


def test_the_page_of_results_is_what_its_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_results.py"))
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == script["page"]()
    assert list((ROOT / "docs" / "results").glob("*.json")), "no result is kept"
