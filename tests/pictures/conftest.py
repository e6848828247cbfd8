"""A run whose documents, title and name attack the page that shows them, and a browser."""

import json
import shutil
from pathlib import Path

import pytest

from retroflow.cli.main import run as command
from tests.cli.conftest import RECIPE

ATTACK = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2><!--<script>"
HIDDEN = "a\u202eb\u2028c\u200bd"

CURVE = {
    "curve_version": 1,
    "over": "retriever",
    "unit": "name",
    "measure": "nats per token",
    "points": [
        {"x": 0, "label": "exact", "on": 4.5, "off": 5.0, "on_interval": [4.4, 4.6], "gain": 0.5, "gain_interval": [0.4, 0.6], "recall": 1.0},
        {"x": 1, "label": "<b>bm25</b>", "on": 4.75, "off": 5.0, "on_interval": [4.7, 4.8], "gain": 0.25, "gain_interval": None, "recall": 0.5},
    ],
    "note": "2026-11-27. <i onclick=window.hacked=4>few documents</i>",
}  # fmt: skip


@pytest.fixture(scope="session")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a report, a comparison and a curve; not to be changed."""
    folder = tmp_path_factory.mktemp("pictures")
    corpus = folder / "corpus.jsonl"
    texts = [
        f"{ATTACK} {HIDDEN} number {n} keeps its notes in the same words as all others do. " * 3 for n in range(12)
    ]
    lines = [{"id": f"<b>{n}</b>", "text": text, "title": f"{ATTACK} {HIDDEN} {n}"} for n, text in enumerate(texts)]
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = folder / "<img src=x onerror=window.hacked=3>.yaml"
    written = RECIPE.format(
        corpus=f"'{corpus}', title_key: title", artifacts=folder / "artifacts", runs=folder / "runs"
    )
    recipe.write_text(written.replace("trainer: {", "trainer: {log_every: 2, "))
    assert command(["fit", "--recipe", str(recipe)]) == 0
    run = folder / "runs" / recipe.stem / "0001"
    assert command(["compare", str(run), "--rows", "off,on,shuffled,random", "--sequences", "4"]) == 0
    (run / "curves").mkdir()
    (run / "curves" / "retriever.json").write_text(json.dumps(CURVE))
    return run


@pytest.fixture(scope="module")  # two at once are not possible: each runs an event loop
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        own = Path(started.chromium.executable_path)
        chromium = shutil.which("chromium") or (str(own) if own.is_file() else None)
        if chromium is None:
            pytest.skip("there is no chromium; install it, or run: playwright install chromium")
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def show(browser):
    """Open a file; returns the page and a list of what it complained of or asked for."""
    contexts = []

    def go(file: Path, *, width: int = 1400, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page, seen = context.new_page(), []
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: seen.append(request.url) if request.url != file.as_uri() else None)
        page.goto(file.as_uri())
        return page, seen

    yield go
    for context in contexts:
        context.close()
