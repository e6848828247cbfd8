"""Build the documentation site: gather its pages in one folder, and let Zensical make HTML of them.

    pip install -c constraints.txt -e ".[docs]"
    python docs/build_site.py                        # into build/docs/site; --output FOLDER for another place

Open build/docs/site/index.html: links and search work without a server, too.

Pages come from docs/ as they are. This script makes the others: one of each recipe, of each notebook, of each plugin's
README and of each part of the Python API (mkdocstrings fills it from docstrings), and an index of each folder without
one. Links to files that are no pages lead to copies of these files. zensical.toml has the navigation.
"""

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
"""Pages outside docs/, by their place on the site. README.md has none: links to it lead to the home page."""

API = {
    "run": (
        "Recipes and runs",
        "Prepare, train and measure, as the commands do.",
        "retroflow: load_recipe prepare fit open_run evaluate compare curve bench training_curves evaluate_tasks score "
        "report_page inspect Run",
    ),
    "use": (
        "Models and databases",
        "Open a trained model, generate and score text, change what it reads, search on its own.",
        "retroflow: load LanguageModel Database retriever embedder retroflow_generate; "
        "retroflow.generation: GenerationOptions Generation Piece Source RetrievalDatabase generate stream",
    ),
    "protocols": (
        "Protocols",
        "What a retriever, an embedder, a corpus source, a model and a tracker are.",
        "retroflow: Retriever Embedder Corpus RetrievalModel ModelConfig Tracker Neighbours Capabilities Document; "
        "retroflow.protocols: Queries KeySource AddsKeys RemovesKeys ScoresKeys ChecksVectors OutlinesIndex "
        "BuildsInShards IndexOutline TextSource Counts GenerationCache TrackedRun",
    ),
    "contracts": (
        "Contracts",
        "Test suites for components of your own: subclass one, and pytest runs its rules.",
        "retroflow.testing: RetrieverContract EmbedderContract CorpusContract ModelContract TrackerContract",
    ),
    "model": (
        "The network",
        "RETRO in torch alone, and pretrained models with retrieval added.",
        "retroflow: RetroConfig Retro; retroflow.model.chunked_cross_attention: ChunkedCrossAttention; "
        "retroflow.pretrained.retrofit: RetrofitModel",
    ),
    "training": (
        "Training with Lightning",
        "For a `lightning.Trainer` of your own ([guide](../lightning.md)).",
        "retroflow.training.job: make_job; retroflow.training.data_module: RetroData; "
        "retroflow.training.lightning_module: RetroModule",
    ),
    "errors": ("Errors", "Every error that a user can cause is a `RetroflowError`.", "retroflow.errors:"),
}
"""Title, first line and contents of each page of the API: module, colon, names (none: the whole module)."""


WORKER = """if (location.protocol === "file:") {
  const text = TEXT;
  window.Worker = class extends Worker {
    constructor() {
      super(URL.createObjectURL(new Blob([text], {type: "text/javascript"})));
    }
  };
}
"""
"""Starts the search's worker from its text."""


def build(output: Path) -> Path:
    """Write the site into a folder and return the folder of its HTML.

    Args:
        output: gets `docs/` (the gathered pages), `site/` and `zensical.toml`; what it held is deleted.

    Raises:
        subprocess.CalledProcessError: Zensical found a broken link, an anchor that is not there, or another fault.
    """
    shutil.rmtree(output, ignore_errors=True)
    docs = output / "docs"
    gather(docs)
    config = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    (output / "zensical.toml").write_text(with_patterns_filled(config, docs), encoding="utf-8")
    words = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(output / "zensical.toml")]
    subprocess.run(words, check=True, cwd=output)
    let_folders_be_searched(output / "site")
    return output / "site"


def let_folders_be_searched(site: Path) -> None:
    """Let the search work in pages that are opened from a folder, and fetch nothing for it.

    Browsers start no worker from a file, but from text. Zensical's own way is a script of another server.
    """
    scripts = site / "assets" / "javascripts"
    (worker,) = (scripts / "workers").glob("search.*.js")
    text = json.dumps(worker.read_text(encoding="utf-8"))
    _write(scripts / "worker.js", WORKER.replace("TEXT", text))
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        found = re.search(r'src="([^"]*)assets/javascripts/bundle', html)
        prefix = found[1] if found else ""
        own = f'<script src="{prefix}assets/javascripts/worker.js"></script>'
        _write(page, re.sub(r'<script src="https://unpkg\.com/iframe-worker/[^>]*></script>', own, html))


def gather(docs: Path) -> None:
    """Write every page of the site into a folder, and every file that a page links to."""
    pages = dict(sources())
    places = {**pages, ROOT / "README.md": "index.md"}
    for source, place in pages.items():
        if source.suffix == ".ipynb":
            _write(docs / place, notebook_page(source, docs / place))
        elif source.suffix == ".yaml":
            _write(docs / place, recipe_page(source))
        else:
            _write(docs / place, source.read_text(encoding="utf-8"))
    for name, (title, first, contents) in API.items():
        _write(docs / "api" / f"{name}.md", api_page(title, first, contents))
    listed = "".join(f"- [{title}]({name}.md): {first}\n" for name, (title, first, _) in API.items())
    _write(docs / "api" / "README.md", (docs / "api" / "README.md").read_text(encoding="utf-8") + "\n" + listed)
    for source, place in pages.items():
        page = docs / place
        _write(page, _with_links(page.read_text("utf-8"), source, place, places, docs))
    for folder in sorted({page.parent for page in docs.rglob("*.md")}):
        if not any((folder / name).exists() for name in ("index.md", "README.md")):
            _write(folder / "index.md", index_page(folder))


def sources() -> Iterable[tuple[Path, str]]:
    """Yield each file that becomes a page, with the page's place on the site."""
    for path in sorted((ROOT / "docs").rglob("*.md")):
        yield path, path.relative_to(ROOT / "docs").as_posix()
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        yield path, f"notebooks/{path.stem}.md"
    for path in [*sorted((ROOT / "recipes").glob("*.yaml")), *sorted((ROOT / "plugins").glob("*/*.yaml"))]:
        yield path, f"recipes/{path.stem}.md"
    for path in sorted((ROOT / "plugins").glob("*/README.md")):
        yield path, f"plugins/{path.parent.name}.md"
    for name, place in ELSEWHERE.items():
        yield ROOT / name, place


def recipe_page(path: Path) -> str:
    """Return a page with a recipe's header as prose and table, its commands, and the recipe."""
    text = path.read_text(encoding="utf-8")
    head, rest = re.match(r"((?:#[^\n]*\n)*)(.*)", text, re.DOTALL).groups()
    prose, commands, fields = [], [], {}
    for line in (line.removeprefix("#").removeprefix(" ") for line in head.splitlines()):
        if field := re.match(r"([A-Z][a-z]+)  +(.*)", line):
            key = field[1]
            fields[key] = field[2]
        elif fields and line.startswith("    "):
            fields[key] += " " + line.strip()
        elif line.startswith("  "):
            commands.append(line.strip())
        else:
            prose.append(line)
    name = path.relative_to(ROOT).as_posix()
    commands = commands or [f"retroflow fit --recipe {name}"]
    described = "\n".join(prose).strip()
    facts = "\n".join(f"- **{key}**: {_linked(value)}" for key, value in fields.items())
    parts = [f"# {path.stem}", _linked(described), _fenced("bash", "\n".join(commands)), facts]
    return "\n\n".join([*parts, f"## {name}", _fenced("yaml", rest.strip())]) + "\n"


def _linked(text: str) -> str:
    """Return prose of a recipe with its mentions of pages as links."""
    return re.sub(r"\bdocs/([\w/-]+\.md)", lambda found: f"[{found[1]}](../docs/{found[1]})", text)


def notebook_page(path: Path, page: Path) -> str:
    """Return a notebook as a page; pictures are written beside it."""
    _write(page.with_name(path.name), path.read_text(encoding="utf-8"))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else _fenced("python", source))
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                parts.append(_fenced("text", "".join(output["text"]).rstrip()))
            elif "image/png" in output["data"]:
                picture = page.with_name(f"{page.stem}-{number}.png")
                picture.write_bytes(base64.b64decode(output["data"]["image/png"]))
                parts.append(f"![{output['metadata']['alt']}]({picture.name})")
    parts.insert(1, f'This page is a notebook: <a href="{path.name}" download>{path.name}</a>.')
    return "\n\n".join(parts) + "\n"


def api_page(title: str, first: str, contents: str) -> str:
    """Return a page that mkdocstrings fills."""
    parts = [f"# {title}", first]
    for part in contents.split(";"):
        module, _, names = part.strip().partition(":")
        parts += [f"::: {module}.{name}" for name in names.split()] or [f"::: {module}"]
    return "\n\n".join(parts) + "\n"


def index_page(folder: Path) -> str:
    """Return a list of a folder's pages."""
    pages = [f"- [{title_of(page)}]({page.name})" for page in sorted(folder.glob("*.md"))]
    return "\n".join([f"# {folder.name.capitalize()}", "", *pages]) + "\n"


def title_of(page: Path) -> str:
    """Return the first heading of a page."""
    return re.search(r"^# (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)[1]


def with_patterns_filled(config: str, docs: Path) -> str:
    """Return zensical.toml with each pattern of its navigation replaced by the pages that no line names."""
    named = set(_strings(tomllib.loads(config)["project"]["nav"]))

    def pages(found: re.Match[str]) -> str:
        places = [path.relative_to(docs).as_posix() for path in sorted(docs.glob(found[1]))]
        places.sort(key=lambda place: not place.endswith(("/index.md", "/README.md")))
        return ", ".join(f'"{place}"' for place in places if place not in named)

    return re.sub(r'"([\w-]+/\*\.md)"', pages, config)


def _strings(nav: Any) -> Iterable[str]:
    if isinstance(nav, str):
        yield nav
        return
    for item in nav.values() if isinstance(nav, dict) else nav:
        yield from _strings(item)


def _with_links(text: str, source: Path, place: str, pages: dict[Path, str], docs: Path) -> str:
    """Return a page whose relative links lead to where their targets are on the site."""

    def moved(found: re.Match[str]) -> str:
        target, hash_, anchor = found[1].partition("#")
        if not target or ":" in target:
            return found[0]
        path = Path(os.path.normpath(source.parent / target))
        if path in pages:
            there = pages[path]
        elif path.is_dir():
            there = path.relative_to(ROOT / "docs").as_posix() + "/index.md"
            if not list(path.glob("*.md")):
                _write(docs / there, _list_of_files(path, docs))
        elif path.is_file():
            there = _copied(path, docs)
        else:
            return found[0]  # Zensical says that it leads nowhere
        return f"]({os.path.relpath(there, PurePosixPath(place).parent)}{hash_}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", moved, text)


def _list_of_files(folder: Path, docs: Path) -> str:
    here = folder.relative_to(ROOT / "docs")
    names = [os.path.relpath(_copied(path, docs), here) for path in sorted(folder.iterdir()) if path.is_file()]
    files = [f"- [{Path(name).name}]({name})" for name in names]
    return "\n".join([f"# {folder.name.capitalize()}", "", *files]) + "\n"


def _copied(path: Path, docs: Path) -> str:
    """Copy a file of the repository, and return its place on the site."""
    inside = path.is_relative_to(ROOT / "docs")
    place = path.relative_to(ROOT / "docs").as_posix() if inside else f"files/{path.relative_to(ROOT).as_posix()}"
    (docs / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, docs / place)
    return place


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _write(page: Path, text: str) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Build the site."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "docs", help="folder (default: build/docs)")
    try:
        print(build(parser.parse_args().output.absolute()) / "index.html")
    except subprocess.CalledProcessError:
        sys.exit("The site was not built: each warning above names a page and a line.")


if __name__ == "__main__":
    main()
