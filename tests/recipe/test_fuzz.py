"""Whatever a recipe holds, loading it ends soon and in a UsageError or a Recipe."""

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retroflow.components import recipe_schema
from retroflow.errors import UsageError
from retroflow.recipe import load
from retroflow.recipe.yaml_text import dump

RECIPE = """\
recipe_version: 1
corpus: {name: jsonl, path: x.jsonl}
embedder: {name: lexical}
retriever: {name: exact}
model: {name: retro, cca_layers: [1, 2], num_layers: 2}
trainer: {max_steps: 10, device: cpu}
"""


def load_or_refuse(data: bytes, words: list[str] | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_bytes(data)
        with contextlib.suppress(UsageError):
            load(path, words or [], schema=recipe_schema())


@settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_changed_bytes(data: st.DataObject) -> None:
    text = bytearray(RECIPE.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    load_or_refuse(bytes(text))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("${data}") | st.just("???"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["corpus", "model", "trainer", "data", "retriever", "seed", "extends", "tracker", "zzz"])


@settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(keys, values | st.dictionaries(st.sampled_from(["name", "path", "k", "max_steps"]), values)))
def test_wrong_structures(tree: dict[str, object]) -> None:
    load_or_refuse(dump({"recipe_version": 1} | tree).encode("utf-8", "surrogatepass"))


@settings(max_examples=60, deadline=2000)
@given(st.lists(st.text(max_size=20) | st.builds("trainer.{}={}".format, st.text(max_size=6), st.text(max_size=9))))
def test_wrong_words(words: list[str]) -> None:
    load_or_refuse(RECIPE.encode(), words)


@pytest.mark.parametrize("word", ["seed=\ud800", "trainer.runs_folder=\ud800"])
def test_a_lone_surrogate_on_the_command_line(word: str) -> None:
    load_or_refuse(RECIPE.encode(), [word])
