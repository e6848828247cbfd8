"""The page in a real browser: the answer as it is written, sources beside it, search; and nothing in a document runs."""

import shutil
import threading
from pathlib import Path

import pytest

from retroflow.database.database import Database
from retroflow.serving.options import Keys
from retroflow.serving.service import Service
from tests.serving.small import READ_KEY, listening, open_model, prompt_of

pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = (
    "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'><svg onload='window.ran = 1'>"
    "</p><iframe srcdoc='<script>parent.ran = 1</script>'></iframe> javascript:window.ran=1 "
)


@pytest.fixture(scope="module")
def service(tmp_path_factory, database_folder):
    """A server whose database holds a document that tries to run script."""
    folder = tmp_path_factory.mktemp("page") / "db"
    shutil.copytree(database_folder, folder)
    database = Database.open(folder)
    database.add([{"id": "evil", "text": HOSTILE * 3, "title": HOSTILE, "source": "javascript:window.ran=1"}])
    return Service(open_model(database), name="small", keys=Keys(READ_KEY))


@pytest.fixture(scope="module")
def url(service):
    with listening(service) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as library:
        found = library.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(url, browser):
    """The page with the key entered; every complaint of the browser is a failure."""
    page = browser.new_page()
    page.set_default_timeout(120_000)  # the machine may be busy
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("requestfailed", lambda request: page.complaints.append(request.url))
    page.on(
        "request",
        lambda request: page.complaints.append(request.url) if not request.url.startswith((url, "data:")) else None,
    )
    page.goto(url)
    page.get_by_label("This server asks for a key").fill(READ_KEY)
    page.get_by_role("button", name="Use key").click()
    page.get_by_text("small reads db").wait_for()
    yield page
    page.close()


def write(page, prompt, tokens=24):
    page.get_by_label("Text to continue").fill(prompt)
    page.get_by_label("tokens").fill(str(tokens))
    page.get_by_role("button", name="Write").click()
    page.locator("#write:not([disabled])").wait_for()


def test_the_answer_stands_beside_what_it_read(page, url) -> None:
    write(page, prompt_of(1))
    assert page.locator("#message").inner_text().startswith("read ")
    rows = page.locator("#answer .row")
    assert rows.count() > 1 and page.locator("#answer .sources details").count() >= 2
    assert "nats" in page.locator("#answer .sources summary").first.inner_text()
    text = "".join(rows.nth(place).locator(".text").text_content() for place in range(rows.count()))
    page.get_by_label("retrieval").uncheck()
    write(page, prompt_of(1))
    assert page.locator("#message").inner_text() == "read no chunks"
    assert (
        page.locator("#answer .sources details").count() == 0 and page.locator("#answer .text").text_content() != text
    )
    assert page.complaints == []


def test_a_hostile_document_is_shown_as_text(page) -> None:
    page.get_by_label("Search the database").fill(HOSTILE)
    page.get_by_role("button", name="Search").click()
    page.locator("#results li").first.wait_for()
    page.locator("#results summary").first.click()
    assert "<script>window.ran = 1</script>" in page.locator("#results").inner_text()
    write(page, HOSTILE)
    assert "window.ran" in page.locator("#answer .sources").first.inner_text()
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    assert page.locator("main script, main img, main iframe, main svg, main a").count() == 0
    assert page.complaints == []


def test_the_page_may_load_nothing_and_run_nothing_else(page, url) -> None:
    policy = page.request.get(url).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    page.evaluate(
        "document.body.appendChild(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
    )
    assert page.evaluate("window.ran") is None


def test_an_error_of_the_server_is_shown_in_its_words(page, service, monkeypatch) -> None:
    write(page, "")
    assert "has no token" in page.locator("#message").inner_text()
    page.get_by_label("Text to continue").fill(prompt_of(2))
    compute, stopped = service.worker.batch.step, threading.Event()
    monkeypatch.setattr(service.worker.batch, "step", lambda: compute() if stopped.wait(0.05) else None)
    page.get_by_role("button", name="Write").click()
    page.get_by_role("button", name="Stop").click()
    page.locator("#write:not([disabled])").wait_for()
    assert page.locator("#message").inner_text() == "stopped"


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_nothing_is_wider_than_the_window(page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    write(page, prompt_of(3))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
