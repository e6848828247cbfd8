import pytest

from retroflow import components
from retroflow.errors import RecipeError, UnknownComponentError
from retroflow.registry import Entry, Registry

PARTS = Registry("part", None, {"oak": Entry("tests.component_parts:Oak"), "pine": Entry("tests.component_parts:pine")})


def test_four_open_registries_and_one_closed_table() -> None:
    groups = {registry.kind: registry.group for registry in components.KINDS}
    assert groups == {
        "corpus": None,
        "embedder": "retroflow.embedders",
        "retriever": "retroflow.retrievers",
        "model": "retroflow.models",
        "tracker": "retroflow.trackers",
    }


def test_every_section_of_the_recipe_is_in_the_schema() -> None:
    sections = ["corpus", "embedder", "retriever", "neighbours", "model", "data", "optimizer", "trainer", "tracker"]
    assert list(components.recipe_schema().sections) == sections


def test_create_turns_blocks_into_dataclasses_and_lists_into_tuples() -> None:
    oak = components.create(PARTS, {"name": "oak", "build": {"sizes": [1, 2]}, "tags": ["a"]}, height=3)
    assert type(oak.build).__name__ == "Build"
    assert oak.build.sizes == (1, 2)
    assert oak.tags == ["a"]
    assert oak.height == 3


def test_create_leaves_null_and_absent_options_alone() -> None:
    assert components.create(PARTS, {"name": "oak", "build": None}, height=1).build is None
    assert components.create(PARTS, {"name": "oak"}, height=1).build is None


def test_create_calls_functions_too() -> None:
    assert components.create(PARTS, {"name": "pine", "width": 2}) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "oak", "leafs": 1}, 'part "oak" of retroflow .* has no option "leafs". Its options: build, tags, height'),
        ({"name": "oak"}, 'needs a value for "height"'),
        ({"name": "oak", "height": 1, "build": {"x": 1}}, 'Build has no option "x"'),
    ],
)
def test_create_refuses_what_does_not_bind(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        components.create(PARTS, options)


def test_create_offers_the_nearest_name() -> None:
    with pytest.raises(UnknownComponentError, match='Did you mean "oak"'):
        components.create(PARTS, {"name": "oka"})


def test_create_builds_a_model_config_with_derived_values() -> None:
    options = {"name": "retro", "num_layers": 2, "cca_layers": [1, 2]}
    config = components.create(components.MODELS, options, vocabulary_size=300, chunk_length=8)
    assert (config.vocabulary_size, config.chunk_length, config.cca_layers) == (300, 8, (1, 2))
