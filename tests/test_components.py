import sys
from pathlib import Path
from typing import Any

import pytest

from retroflow import components
from retroflow.errors import ComponentError, RecipeError, UnknownComponentError, UsageError
from retroflow.recipe import load
from retroflow.registry import Entry, Registry

PARTS = Registry("part", None, {"oak": Entry("tests.component_parts:Oak"), "pine": Entry("tests.component_parts:pine")})


def test_every_registry_is_open() -> None:
    groups = {registry.kind: registry.group for registry in components.KINDS}
    assert groups == {
        "corpus": "retroflow.corpora",
        "embedder": "retroflow.embedders",
        "retriever": "retroflow.retrievers",
        "model": "retroflow.models",
        "tracker": "retroflow.trackers",
    }


def test_every_section_of_the_recipe_is_in_the_schema() -> None:
    sections = ["corpus", "embedder", "retriever", "neighbours", "model", "data", "optimizer", "trainer", "tracker"]
    assert list(components.recipe_schema().sections) == sections


def test_a_recipe_must_name_an_embedder_only_for_retrievers_that_search_embeddings(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "recipe_version: 1\ncorpus: {name: jsonl, path: corpus.jsonl}\nmodel: {name: retro}\n"
        "trainer: {max_steps: 1}\nretriever: {name: bm25}\n"
    )
    schema = components.recipe_schema()
    assert load(recipe, [], schema=schema).values["embedder"] == {"name": "none"}
    for words, message in (
        ([], r'recipe.yaml: embedder.name is missing, and retriever "faiss" needs it\. Allowed: bert, lexical\.'),
        (
            ["embedder.name=none"],
            r'command line: embedder.name is "none", and retriever "faiss" needs one\. Allowed: b',
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            load(recipe, ["retriever.name=faiss", *words], schema=schema)


def test_the_parts_of_a_retriever_are_sections_of_their_own(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "recipe_version: 1\ncorpus: {name: jsonl, path: corpus.jsonl}\nembedder: {name: lexical}\nmodel: {name: retro}\n"
        "trainer: {max_steps: 1}\nretriever:\n  name: hybrid\n  dense:\n    name: hnsw\n    build: {links: 8}\n"
    )

    def loaded(*words: str) -> dict[str, Any]:
        return load(recipe, words, schema=components.recipe_schema()).values["retriever"]

    values = loaded("retriever.words.build.b=0.5", "retriever.search.candidates=32")
    assert values["search"] == {"candidates": 32}
    assert values["dense"]["build"] | {"links": 8, "seed": 1234} == values["dense"]["build"]
    assert values["words"] == {"name": "bm25", "build": {"k1": 1.5, "b": 0.5}}
    assert loaded("retriever.name=rerank")["dense"]["name"] == "faiss"  # of another component nothing is kept
    for words, message in (
        (
            ["retriever.dense.build.link=9"],
            r'line: retriever\.dense\.build\.link is not a known key\. Did you mean "links"',
        ),
        (
            ["retriever.dense.build.links=1"],
            r"line: retriever\.dense\.build\.links is 1; allowed: a whole number of at ",
        ),
        (["retriever.dense.name=hnws"], r'line: retriever\.dense\.name is "hnws"\. .* Did you mean "hnsw"'),
        (["retriever.words=bm25"], r'line: retriever\.words is "bm25" .* Write retriever\.words\.name=bm25'),
        (
            ["retriever.dense={name: faiss, build: {factory: x}}"],
            r'retriever\.dense\.build\.factory is "x"; allowed: "auto"',
        ),
        (["embedder.name=none"], r'command line: embedder\.name is "none", and retriever "hybrid" needs one'),
    ):
        with pytest.raises(UsageError, match=message):
            loaded(*words)
    made = components.create_retriever({"name": "hybrid", "dense": {"name": "exact"}, "words": None})
    assert made.capabilities.queried_by == "both"
    with pytest.raises(UsageError, match="dense and words must be retrievers; retroflow"):
        components.create_retriever({"name": "hybrid", "dense": "exact"})


def test_create_turns_blocks_into_dataclasses_and_lists_into_tuples() -> None:
    oak = components.create(PARTS, {"name": "oak", "build": {"sizes": [1, 2]}, "tags": ["a"]}, height=3)
    assert type(oak.build).__name__ == "Build"
    assert oak.build.sizes == (1, 2)
    assert oak.tags == ["a"]
    assert oak.height == 3


def test_create_leaves_null_and_absent_options_alone() -> None:
    assert components.create(PARTS, {"name": "oak", "build": None}, height=1).build is None
    assert components.create(PARTS, {"name": "oak"}, height=1).build is None


@pytest.mark.parametrize("registry", components.KINDS, ids=lambda registry: registry.kind)
def test_what_is_made_has_every_member_of_its_protocol(registry: Registry[object]) -> None:
    """The suite of each kind has the details; here it is that the first use names what is missing."""
    others = Registry(registry.kind, None, {"oak": Entry("tests.component_parts:Oak")}, registry.protocol)
    with pytest.raises(ComponentError, match=rf'"oak" of retroflow .*: Oak is no {registry.protocol}, it lacks \w+'):
        components.create(others, {"name": "oak"}, height=1)


def test_create_calls_functions_too() -> None:
    assert components.create(PARTS, {"name": "pine", "width": 2}) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "oak", "leafs": 1},
            'part "oak" of retroflow .* has no option "leafs". Its options: build, tags, height',
        ),
        ({"name": "oak"}, 'needs a value for "height"'),
        ({"name": "oak", "height": 1, "build": {"x": 1}}, "part.build.x is not a known key. Known: "),
    ],
)
def test_create_refuses_what_does_not_bind(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        components.create(PARTS, options)


def test_create_offers_the_nearest_name() -> None:
    with pytest.raises(UnknownComponentError, match='Did you mean "oak"'):
        components.create(PARTS, {"name": "oka"})


def test_create_builds_a_model_config_with_derived_values() -> None:
    options = {"name": "retro", "num_layers": 2, "cca_layers": [1, 2]}
    config = components.create(components.MODELS, options, vocabulary_size=300, chunk_length=8)
    assert (config.vocabulary_size, config.chunk_length, config.cca_layers) == (300, 8, (1, 2))


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Return plugins(source): a registry with `part`, the class Part of a distribution with this source."""

    def make(source: str) -> Registry:
        folder = tmp_path / "part_maker-2.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: part-maker\nVersion: 2.0\n")
        (folder / "entry_points.txt").write_text("[test.parts]\npart = part_of_a_plugin:Part\n")
        (tmp_path / "part_of_a_plugin.py").write_text(source)
        return Registry("part", "test.parts", {})

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "part_of_a_plugin", raising=False)
    yield make
    sys.modules.pop("part_of_a_plugin", None)


@pytest.mark.parametrize(
    "raised",
    ["ValueError('no')", "OSError(2, 'gone')", "MemoryError()", "SystemExit(0)", "BaseException()", "RecursionError()"],
)
def test_what_a_plugin_raises_while_it_is_made_names_it(plugins, capsys, raised: str) -> None:
    registry = plugins(
        f"class Part:\n    def __init__(self, *, size: int = 1):\n        print('noise'); raise {raised}\n"
    )
    with pytest.raises(ComponentError, match=r'part "part" of part-maker 2\.0 could not be made: ') as caught:
        components.create(registry, {"name": "part", "size": 1})
    assert type(caught.value.__cause__).__name__ in str(caught.value)
    assert caught.value.exit_code == 1
    assert capsys.readouterr().out == ""


def test_an_interrupt_and_an_error_of_ours_stay_while_a_plugin_is_made(plugins) -> None:
    source = "from retroflow.errors import UsageError\nclass Part:\n    def __init__(self, *, kind: str):\n"
    source += "        raise KeyboardInterrupt if kind == 'interrupt' else UsageError('retriever.size: too large')\n"
    registry = plugins(source)
    with pytest.raises(KeyboardInterrupt):
        components.create(registry, {"name": "part", "kind": "interrupt"})
    with pytest.raises(UsageError, match="too large"):
        components.create(registry, {"name": "part", "kind": "ours"})


@pytest.mark.parametrize("source", ["Part = 3\n", "class Part:\n    def __init__(self, *, size: 'Missing' = 1): ...\n"])
def test_a_plugin_that_cannot_be_bound_is_named(plugins, source: str) -> None:
    with pytest.raises(
        ComponentError, match=r'part "part" of part-maker 2\.0 could not be made: (TypeError|NameError)'
    ):
        components.create(plugins(source), {"name": "part"})


def test_a_built_in_that_runs_out_of_memory_is_named_and_its_other_errors_stay(monkeypatch) -> None:
    monkeypatch.setattr(
        "tests.component_parts.Oak.__init__", lambda self, *, height: [][height] if height else memory()
    )

    def memory() -> None:
        raise MemoryError

    with pytest.raises(
        ComponentError, match='part "oak" of retroflow .* there is not enough memory for what its options'
    ):
        components.create(PARTS, {"name": "oak", "height": 0})
    with pytest.raises(IndexError):
        components.create(PARTS, {"name": "oak", "height": 1})
