import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from retroflow.components import recipe_schema
from retroflow.errors import MissingExtraError, UnknownComponentError, UsageError
from retroflow.options.fitting import nearest
from retroflow.recipe import Recipe, RecipeSchema, Slot, load
from retroflow.registry import Registry
from tests.recipe.parts import Load, make_schema

OAK = "recipe_version: 1\ntree: {name: oak}\n"


def test_values_are_complete_and_origins_name_file_line_override_and_default(load_text: Load) -> None:
    recipe = load_text("recipe_version: 1\ntree:\n  name: oak\n  leaves: 7\n", "run.steps=3")
    assert recipe.name == "r"
    assert recipe.values["seed"] == 1
    assert recipe.section("tree") == {
        "name": "oak",
        "build": {"factory": "auto", "sample": 0},
        "leaves": 7,
        "ratio": 0.5,
        "tags": [],
        "speed": "slow",
        "depth": 3,
    }
    assert recipe.values["run"] == {"steps": 3, "rate": 0.1, "folder": "runs", "layers": [1, 2], "many": [4, 5]}
    assert recipe.origins["tree.leaves"] == "r.yaml:4"
    assert recipe.origins["run.steps"] == "command line"
    assert recipe.origins["tree.build.factory"] == "default"


def test_no_component_is_imported(load_text: Load) -> None:
    load_text(OAK)
    assert "unimportable_parts" not in sys.modules


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1])
def test_seeds_that_torch_and_numpy_take_are_taken(load_text: Load, seed: int) -> None:
    recipe = load_text(OAK, f"seed={seed}")
    assert recipe.values["seed"] == seed
    torch.manual_seed(seed)
    np.random.default_rng([seed, 1])


def test_section_returns_a_copy(load_text: Load) -> None:
    recipe = load_text(OAK)
    recipe.section("tree")["tags"].append("x")
    assert recipe.values["tree"]["tags"] == []


def test_to_yaml_loads_to_the_same_values(load_text: Load) -> None:
    tricky = [
        "yes",
        "12",
        "1e3",
        "null",
        "",
        " x",
        "a: b",
        "#",
        "010",
        "\u00fc",
        "line\nbreak",
        "true",
        "~",
        "1:30",
        "0x1f",
    ]
    recipe = load_text(
        f"recipe_version: 1\ntree: {{name: oak, tags: {tricky!r}}}\n".replace("\\n", "\\\\n"), "run.rate=1e-8"
    )
    again = load_text(recipe.to_yaml())
    assert again.values == recipe.values


def test_all_problems_are_listed_sorted_by_line_with_the_command_line_last(load_text: Load) -> None:
    text = "recipe_version: 1\nrun:\n  stepz: 3\n  rate: fast\ntree: {name: oak, leaves: x, speed: fas}\nextra: 1\n"
    with pytest.raises(UsageError) as raised:
        load_text(text, "run.steps=many")
    lines = str(raised.value).splitlines()
    assert lines[0] == "r.yaml has 6 errors:"
    assert [line.split(": ")[0].strip() for line in lines[1:]] == [
        "r.yaml:3",
        "r.yaml:4",
        "r.yaml:5",
        "r.yaml:5",
        "r.yaml:6",
        "command line",
    ]
    assert lines[1].endswith(
        'run.stepz is not a known key. Did you mean "steps"? Keys of run: steps, rate, folder, layers, many.'
    )
    assert lines[2].endswith('run.rate is "fast" (text); allowed: a number.')
    assert lines[4].endswith('tree.speed is "fas" (text); allowed: "slow" or "fast". Did you mean "fast"?')
    assert lines[6].endswith('run.steps is "many" (text); allowed: a whole number.')


def test_a_key_at_the_wrong_level_is_sent_to_the_right_one(load_text: Load) -> None:
    with pytest.raises(UsageError, match='factory is not a known key. Did you mean "tree.build.factory"'):
        load_text(OAK + "factory: x\n")


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("run.leaves=1", "tree.leaves"),
        ("run.leafs=1", "tree.leaves"),
        ("STEPS=1", "run.steps"),
        ("run.Steps=1", "steps"),
    ],
)
def test_a_key_in_the_wrong_section_or_case_is_found(load_text: Load, override: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f'Did you mean "{meant}"'):
        load_text(OAK, override)


def test_initials_are_understood() -> None:
    assert nearest("lr", ["beta1", "learning_rate"]) == "learning_rate"


def test_a_derived_value_cannot_be_given(load_text: Load) -> None:
    with pytest.raises(UsageError, match="tree.height follows from other parts of the recipe"):
        load_text(OAK, "tree.height=3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe_version: 1\n", "r.yaml:1: tree.name is missing; it has no default. Allowed: \"oak\" or \"elm\"."),
        ("tree: {name: oak}\n", "r.yaml:1: recipe_version is missing; it has no default. Allowed: 1."),
        ("recipe_version: 1\ntree: {leaves: 3}\n", "r.yaml:2: tree.name is missing"),
        ("recipe_version: 1\ntree: {name: elm}\n", "r.yaml:2: tree.path is missing; it has no default. Allowed: text."),
        ("recipe_version: 1\ntree:\n  name: elm\n  path: ???\n", "r.yaml:4: tree.path is ???: it must be given"),
        ("recipe_version: 1\ntree: oak\n", "r.yaml:2: tree is \"oak\" (text); allowed: a mapping with the keys name. Write {name: oak}."),
        ("recipe_version: 1\ntree: [oak]\n", "r.yaml:2: tree is a list of 1"),
        (OAK + "run: 3\n", "r.yaml:3: run is 3 (a whole number); allowed: a mapping with the keys steps, rate"),
        (OAK + "run:\n", "r.yaml:3: run is nothing (null); allowed: a mapping"),
        (OAK + "run.steps: 3\n", "r.yaml:3: run.steps has dots"),
        (OAK + "run: {<<: 3}\n", "YAML's merge key"),
        (OAK + "1: 3\n", 'has the key "1", which is not text'),
        (OAK + "run: {steps: 1, steps: 2}\n", "r.yaml:3: run.steps is given twice, first in line 3"),
        (OAK + "run: {steps: !!python/name:os.system 1}\n", "tag !!python/name:os.system"),
        (OAK + "run: {steps: !!int 3}\n", "r.yaml:3: run.steps has the tag !!int; a recipe holds plain values"),
        (OAK + "seed: true\n", "seed is true (a truth value); allowed: a whole number of at least 0."),
        (OAK + "seed: 1.0\n", "seed is 1.0 (a number); allowed: a whole number of at least 0."),
        (OAK + 'seed: "12"\n', 'seed is "12" (text); allowed: a whole number of at least 0. Remove the quotes.'),
        (OAK + "seed: 012\n", 'seed is "012" (text)'),
        (OAK + "run: {rate: .nan}\n", "run.rate is nan; allowed: a finite number."),
        (OAK + "run: {rate: 1e999}\n", "run.rate is inf; allowed: a finite number."),
        (OAK + f"seed: {'9' * 400}\n", "a number of more than 300 digits"),
        (OAK + "run: {folder: 12}\n", 'run.folder is 12 (a whole number); allowed: text. Write it in quotes: "12".'),
        (OAK + "run: {folder: false}\n", 'Write it in quotes: "false".'),
        (OAK + "run: {layers: 3}\n", "run.layers is 3 (a whole number); allowed: a list, each item a whole number. Write [3]."),
        (OAK + "run: {layers: [1, x]}\n", 'run.layers[1] is "x" (text)'),
        ("recipe_version: 1\ntree: {name: elm, path: x, split: [1]}\n", "tree.split is a list of 1; allowed: a list of 2"),
        ("recipe_version: 1\ntree: {name: elm, path: x, on: yes}\n", 'tree.on is "yes" (text); allowed: true or false.'),
        ("recipe_version: 1\ntree: {name: elm, path: x, on: 1}\n", "tree.on is 1 (a whole number); allowed: true or false."),
        ("recipe_version: 1\ntree: {name: elm, path: x, weights: {a: b}}\n", 'tree.weights.a is "b" (text)'),
        ("recipe_version: 2\ntree: {x: 1}\n", "r.yaml:1: recipe_version is 2; this retroflow reads version 1. Install a newer"),
        ("", "r.yaml is empty"),
        ("# nothing\n", "r.yaml is empty"),
        ("- 1\n", "r.yaml: a recipe is a mapping of `key: value` lines, not a list of 1."),
        ("just words\n", 'not "just words" (text).'),
        ("a: [1\nb: 2\n", "r.yaml:2: this is not YAML: while parsing a flow sequence"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: this is not YAML: expected a single document"),
        ("a: *b\n", "r.yaml:1: this is not YAML: found undefined alias"),
        ("a: \x01\n", "control character U+0001"),
        ('recipe_version: 1\ntree: {name: elm, path: "a\\0b"}\n', "r.yaml:2: tree.path holds the control character U+0000"),
        ("\ta: 1\n", "this is not YAML"),
        (b"\xff\xfe\x00", "r.yaml:1: byte 0 is not UTF-8"),
        (b"a: 1\nb: \xe4\n", "r.yaml:2: byte 8 is not UTF-8"),
        ("a: &x [*x]\n", "nested more than 32 levels"),
        ("[" * 5000, "nested"),
        ("a: " + "{b: " * 100 + "1" + "}" * 100, "nested more than 32 levels"),
        ("#" * 70_000, "is larger than 64 KB"),
        ("x: 1\n" * 1000, "r.yaml has 100 or more errors"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_refused_with_place_and_remedy(load_text: Load, text: str | bytes, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        load_text(text)
    assert message in str(raised.value)


def test_a_recipe_that_comes_from_a_pipe_is_read_no_further_than_any_other(tmp_path: Path) -> None:
    pipe = tmp_path / "r.yaml"
    os.mkfifo(pipe)

    def write() -> None:
        with suppress(BrokenPipeError):
            pipe.write_text("#" * 200_000)

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(UsageError, match="is larger than 64 KB"):
        load(pipe, [], schema=make_schema())
    writer.join()


def test_an_alias_bomb_is_refused(load_text: Load) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    with pytest.raises(UsageError, match="more than 20000 values"):
        load_text(bomb)


def test_plain_aliases_work(load_text: Load) -> None:
    recipe = load_text("recipe_version: 1\ntree: {name: oak, leaves: &n 9}\nrun: {steps: *n}\n")
    assert recipe.values["run"]["steps"] == 9


def test_a_whole_number_is_a_number_and_becomes_one(load_text: Load) -> None:
    rate = load_text(OAK + "run: {rate: 2}\n").values["run"]["rate"]
    assert rate == 2.0
    assert type(rate) is float


def test_numbers_in_exponent_notation_are_numbers(load_text: Load) -> None:
    assert load_text(OAK + "run: {rate: 3e-3}\n").values["run"]["rate"] == 0.003


def test_a_byte_order_mark_is_ignored(load_text: Load) -> None:
    assert load_text(b"\xef\xbb\xbf" + OAK.encode()).values["seed"] == 1


def test_an_unknown_component_offers_the_nearest_name(load_text: Load) -> None:
    with pytest.raises(
        UnknownComponentError, match='r.yaml:2: tree.name is "oka". There is no tree "oka". Did you mean "oak"'
    ):
        load_text("recipe_version: 1\ntree: {name: oka, whatever: 1}\n")


def test_a_missing_file_lists_its_neighbours(load_text: Load) -> None:
    load_text(OAK)
    with pytest.raises(UsageError, match="There is no recipe at s.yaml. There are: r.yaml"):
        load(Path("s.yaml"), [], schema=make_schema())


def test_a_folder_and_a_name_with_a_null_byte_are_refused(load_text: Load) -> None:
    load_text(OAK)
    for path in (Path(), Path("a\0b")):
        with pytest.raises(UsageError, match="cannot be read"):
            load(path, [], schema=make_schema())


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("run: {steps: !!int 3}\n", "run.steps has the tag !!int"),
        ("run: {folder: !!str a}\n", "run.folder has the tag !!str"),
        ("run: !!map {steps: 3}\n", "run has the tag !!map"),
        ("run: {layers: !!seq [1]}\n", "run.layers has the tag !!seq"),
        ("run: {folder: ! a}\n", "run.folder has the tag !"),
    ],
)
def test_every_tag_is_an_error(load_text: Load, text: str, tag: str) -> None:
    with pytest.raises(UsageError, match=f"^r.yaml:3: {tag}"):
        load_text(OAK + text)


class TestExtends:
    def test_a_circle_is_told_alone(self, load_text: Load, tmp_path: Path) -> None:
        (tmp_path / "p.yaml").write_text("extends: r.yaml\n")
        with pytest.raises(UsageError) as raised:
            load_text("extends: p.yaml\n")
        text = "is given in a recipe that r.yaml extends already; recipes are extended one level deep."
        assert str(raised.value) == f"p.yaml:1: extends {text}"

    def test_mappings_merge_and_the_rest_is_replaced(self, load_text: Load, tmp_path: Path) -> None:
        (tmp_path / "up").mkdir()
        parent = "recipe_version: 1\ntree: {name: oak, leaves: 3, tags: [a, b]}\nrun: {steps: 5}\n"
        (tmp_path / "up" / "p.yaml").write_text(parent)
        recipe = load_text("extends: up/p.yaml\ntree: {tags: [c]}\nrun: {rate: 9}\n")
        assert recipe.values["tree"]["tags"] == ["c"]
        assert recipe.values["tree"]["leaves"] == 3
        assert recipe.values["run"]["steps"] == 5
        assert recipe.origins["tree.leaves"] == "up/p.yaml:2"
        assert recipe.origins["run.rate"] == "r.yaml:3"

    def test_another_name_replaces_the_block(self, load_text: Load, tmp_path: Path) -> None:
        (tmp_path / "p.yaml").write_text("recipe_version: 1\ntree: {name: oak, leaves: 3}\n")
        recipe = load_text("extends: p.yaml\ntree: {name: elm, path: x}\n")
        assert "leaves" not in recipe.values["tree"]

    def test_the_same_name_keeps_the_block(self, load_text: Load, tmp_path: Path) -> None:
        (tmp_path / "p.yaml").write_text("recipe_version: 1\ntree: {name: oak, leaves: 3}\n")
        assert load_text("extends: p.yaml\ntree: {name: oak}\n").values["tree"]["leaves"] == 3

    @pytest.mark.parametrize(
        ("parent", "child", "message"),
        [
            (None, "extends: p.yaml\n", "r.yaml:1: extends: There is no recipe at p.yaml."),
            (
                "extends: q.yaml\n" + OAK,
                "extends: p.yaml\n",
                "p.yaml:1: extends is given in a recipe that r.yaml extends",
            ),
            (OAK, "extends: [p.yaml]\n", "r.yaml:1: extends is a list of 1; allowed: the path of another recipe"),
            (OAK, "extends: r.yaml\n" + OAK, "r.yaml:1: extends is given in a recipe that r.yaml extends already"),
            ("recipe_version: 7\n", "extends: p.yaml\n", "p.yaml:1: recipe_version is 7"),
            (OAK + "run: {stepz: 1}\n", "extends: p.yaml\nrun: {stepz: 1}\n", "r.yaml:2: run.stepz"),
        ],
    )
    def test_what_cannot_be_extended(
        self, load_text: Load, tmp_path: Path, parent: str | None, child: str, message: str
    ) -> None:
        if parent is not None:
            (tmp_path / "p.yaml").write_text(parent)
        with pytest.raises(UsageError) as raised:
            load_text(child)
        assert message in str(raised.value)


def test_ranges_known_to_the_options_alone_are_reported_with_their_line(
    load_text: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_text(OAK)
    sys.modules.pop("parts_sections", None)
    source = (tmp_path / "parts_sections.py").read_text().rstrip()
    check = (
        "    def __post_init__(self):\n        from retroflow.errors import UsageError\n        if self.steps < 0:\n"
    )
    raising = '            raise UsageError(f"run.steps is {self.steps}; it must be 0 or more.")\n'
    (tmp_path / "parts_sections.py").write_text(source + "\n\n" + check + raising)
    with pytest.raises(UsageError, match=r"^r.yaml:3: run.steps is -5; it must be 0 or more.$"):
        load_text(OAK + "run: {steps: -5}\n")
    sys.modules.pop("parts_sections", None)


class TestComponentsWithoutOptions:
    SHIPPED = "recipe_version: 1\ncorpus: {name: jsonl, path: x}\nembedder: {name: lexical}\nretriever: {name: exact}\nmodel: {name: retro}\n"

    def load_shipped(self, load_text: Load, tracker: str, *overrides: str) -> Recipe:
        load_text(OAK)
        Path("r.yaml").write_text(f"{self.SHIPPED}tracker: {tracker}\n")
        return load(Path("r.yaml"), overrides, schema=recipe_schema())

    @pytest.mark.parametrize(
        ("tracker", "overrides", "messages"),
        [
            ("{}", ["tracker.foo=1"], ['command line: tracker.foo is not a known key: tracker "none" takes no options. Remove the key.']),
            ("{name: none, project: x}", [], ['r.yaml:6: tracker.project is not a known key: tracker "none"', "write tracker.name=wandb"]),
            ("{name: none, projekt: x, foo: {bar: 1}}", [], ['tracker "wandb" has "project"', "tracker.foo is not"]),
            ("{projekt: x}", [], ['tracker.projekt is not a known key: tracker "none" takes no options', "tracker.name=wandb"]),
        ],
    )  # fmt: skip
    def test_a_key_given_to_them_is_refused(
        self, load_text: Load, tracker: str, overrides: list[str], messages: list[str]
    ) -> None:
        with pytest.raises(UsageError) as raised:
            self.load_shipped(load_text, tracker, *overrides)
        assert all(message in str(raised.value) for message in messages), str(raised.value)

    def test_a_name_alone_is_fine_and_an_override_of_the_name_drops_the_options(self, load_text: Load) -> None:
        assert self.load_shipped(load_text, "{name: none}").values["tracker"] == {"name": "none"}
        dropped = self.load_shipped(load_text, "{name: wandb, project: x}", "tracker.name=none")
        assert dropped.values["tracker"] == {"name": "none"}


def test_an_empty_mapping_that_is_given_has_an_origin(load_text: Load) -> None:
    recipe = load_text("recipe_version: 1\ntree: {name: elm, path: x, weights: {}}\n")
    assert recipe.origins["tree.weights"] == "r.yaml:2"


def test_a_plugin_whose_files_are_gone_comes_with_the_line_that_brings_them_back(
    load_text: Load, tmp_path: Path
) -> None:
    folder = tmp_path / "gone-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: gone\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[test.gone]\ngone = gone_module:A\n")
    load_text(OAK)
    Path("r.yaml").write_text("recipe_version: 1\ntree: {name: gone, leaves: 3}\n")
    with pytest.raises(MissingExtraError, match="pip install --force-reinstall --no-deps gone"):
        load(Path("r.yaml"), [], schema=RecipeSchema({"tree": Slot(Registry("tree", "test.gone", {}))}))
