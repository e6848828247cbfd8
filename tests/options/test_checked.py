"""The range of an option stands in its annotation once; a recipe and Python refuse the same values with one sentence."""

import dataclasses
import importlib
import json
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen

from retroflow import components
from retroflow.errors import RetroflowError, UsageError
from retroflow.generation import GenerationOptions
from retroflow.generation.prompts import telling_in_flags
from retroflow.options import bind, checked_options
from retroflow.options.annotations import parameters
from retroflow.options.types import Block, Limits, OptionType, Scalar, arms_of, block_of, writable
from retroflow.recipe import Slot, load
from retroflow.recipe.signatures import read_block
from retroflow.registry import missing_modules

REQUIRED = {"path": "corpus.jsonl", "packages": ["json"], "base": "gpt2", "vocabulary_size": 300, "chunk_length": 8}
UNBOUNDED = {  # numbers that may be anything
    "retriever.build.anisotropic_threshold",
}
GENERATION = "retroflow.generation.options:GenerationOptions"


class Ranged(NamedTuple):
    """An option of a built-in component or section, and what it may be."""

    component: str  # "" for a section without components
    key: str
    type: OptionType

    @property
    def limits(self) -> Limits:
        return next(
            (arm.limits for arm in arms_of(self.type) if isinstance(arm, Scalar) and arm.kind != "None"), Limits()
        )

    @property
    def is_whole(self) -> bool:
        return self.type.describe().startswith("a whole number")

    def outside(self) -> list[Any]:
        """The nearest values that the limits do not admit."""
        if self.limits.min_length:
            return ["x" * (self.limits.min_length - 1)]
        step = (
            (lambda bound, to: int(bound + to)) if self.is_whole else (lambda b, to: math.nextafter(b, to * math.inf))
        )
        limits = self.limits
        below = [limits.gt] if limits.gt is not None else [] if limits.ge is None else [step(limits.ge, -1)]
        above = [limits.lt] if limits.lt is not None else [] if limits.le is None else [step(limits.le, 1)]
        return [*below, *above]

    def inside(self) -> list[Any]:
        """The outermost values that the limits admit."""
        limits = self.limits
        if limits.min_length:
            return ["x" * limits.min_length]
        bounds = [limits.ge, limits.le]
        if limits.gt is not None:
            bounds.append(math.nextafter(limits.gt, math.inf))
        if limits.lt is not None:
            bounds.append(math.nextafter(limits.lt, -math.inf))
        return [bound for bound in bounds if bound is not None]


def _leaves(component: str, section: str, block: Block) -> Iterator[Ranged]:
    for name, option in block.options.items():
        nested = block_of(option.type)
        if nested is not None:
            yield from _leaves(component, f"{section}.{name}", nested)
        else:
            yield Ranged(component, f"{section}.{name}", option.type)


def _numbers(component: str, section: str, block: Block) -> Iterator[Ranged]:
    for one in _leaves(component, section, block):
        scalars = [arm for arm in arms_of(one.type) if isinstance(arm, Scalar)]
        if any(arm.kind in ("int", "float") or arm.limits != Limits() for arm in scalars):
            yield one


def _all() -> Iterator[Ranged]:
    for section, part in components.recipe_schema().sections.items():
        if not isinstance(part, Slot):
            yield from _numbers("", section, read_block(part.target, "retroflow"))
        else:
            for name, entry in part.registry._builtin.items():
                hidden = frozenset([*part.derived, *entry.parts])
                yield from _numbers(name, section, read_block(entry.target, "retroflow", hidden))


ALL = list(_all())
COMPONENTS = sorted({(option.key.partition(".")[0], option.component) for option in ALL})
RECIPE = """\
recipe_version: 1
corpus: {name: python_source, packages: [json]}
embedder: {name: lexical}
retriever: {name: exact}
model: {name: retro}
"""


def load_with(folder: Path, component: str, values: dict[str, Any]) -> str:
    """Load a recipe with these values; return the message, empty if they are accepted."""
    (folder / "r.yaml").write_text(RECIPE)
    section = next(iter(values)).partition(".")[0]
    needed = [f"corpus={{name: {component}, path: corpus.jsonl}}"] if section == "corpus" else []
    needed = ["corpus={name: python_source, packages: [json]}"] if component == "python_source" else needed
    words = needed or ([f"{section}.name={component}"] if component else [])
    words += [
        f"{key}={json.dumps(value) if isinstance(value, str | list) else repr(value)}" for key, value in values.items()
    ]
    try:
        load(folder / "r.yaml", words, schema=components.recipe_schema())
    except UsageError as error:
        return str(error)
    return ""


def owner_of(option: Ranged) -> tuple[Any, dict[str, Any]]:
    """The class that has an option among its parameters, and arguments without which it cannot be made."""
    section, *path = option.key.split(".")
    if section == "generation":
        return GenerationOptions, {}
    part = components.recipe_schema().sections[section]
    if isinstance(part, Slot):
        entry = part.registry.entry(option.component)
        if missing_modules(entry):
            pytest.skip(f"{option.component} is not installed")
        target = entry.target
    else:
        target = part.target
    module, _, attribute = target.partition(":")
    made = getattr(importlib.import_module(module), attribute)
    for name in path[:-1]:
        hint = typing.get_type_hints(made.__init__)[name]
        made = next(arm for arm in typing.get_args(hint) if dataclasses.is_dataclass(arm))
    keys = () if path[1:] else read_block(target, "retroflow").options
    return made, {key: REQUIRED[key] for key in keys if key in REQUIRED}


def construct(option: Ranged, value: Any) -> str:
    """Construct the component, or its block, with one value in Python; return the message, empty if it is accepted."""
    made, needed = owner_of(option)
    try:
        made(**(needed | {option.key.rpartition(".")[2]: value}))
    except RetroflowError as error:
        return str(error)
    return ""


def test_every_number_of_a_built_in_component_has_a_range() -> None:
    assert {option.key for option in ALL if option.limits == Limits()} == UNBOUNDED


@pytest.mark.parametrize(("section", "component"), COMPONENTS)
def test_values_just_outside_are_refused_by_a_recipe_and_in_python_with_one_sentence(
    section: str, component: str, tmp_path: Path
) -> None:
    options = [one for one in ALL if one.key.partition(".")[0] == section and one.component == component]
    for place in (0, -1):
        values = {one.key: one.outside()[place] for one in options if one.outside()}
        if not values:
            continue
        message = load_with(tmp_path, component, values)
        for one in options:
            if one.key in values:
                said = construct(one, values[one.key])
                assert said.startswith(f"{one.key} is ")
                assert f"command line: {said}" in message
                assert said.endswith(f"; allowed: {one.type.describe()}.")
        assert message.count("command line:") == len(values)


@pytest.mark.parametrize(("section", "component"), COMPONENTS)
def test_values_of_a_wrong_type_are_refused_for_every_option_with_one_sentence(
    section: str, component: str, tmp_path: Path
) -> None:
    """Not for numbers alone: no option of a built-in component takes a list of lists of nothing."""
    part = components.recipe_schema().sections[section]
    entry = part.registry.entry(component) if isinstance(part, Slot) else None
    hidden = frozenset([*part.derived, *entry.parts]) if entry else frozenset()  # parts are sections of their own
    block = read_block(entry.target if entry else part.target, "retroflow", hidden)
    options = list(_leaves(component, section, block))
    message = load_with(tmp_path, component, {one.key: [[None]] for one in options})
    assert message.count("command line:") == len(options)
    for one in options:
        said = construct(one, [[None]])
        assert said.startswith(one.key) and f"command line: {said}" in message


def test_values_outside_are_refused_by_generation_in_the_words_of_python_and_of_flags() -> None:
    options = list(_numbers("", "generation", read_block(GENERATION, "retroflow")))
    assert len(options) >= 8 and all(option.limits != Limits() for option in options)
    for one in options:
        name = one.key.partition(".")[2]
        for value in one.outside():
            sentence = f"is {value}; allowed: {one.type.describe()}."
            assert construct(one, value) == f"{name} {sentence}"
            with pytest.raises(UsageError) as raised, telling_in_flags([]):
                GenerationOptions(**{name: value})
            flag = {"num_neighbours": "neighbours"}.get(name, name.replace("_", "-"))
            assert str(raised.value) == f"--{flag} {sentence}"
        for value in one.inside():
            assert one.type.describe() not in construct(one, value)


@pytest.mark.parametrize(("section", "component"), COMPONENTS)
def test_source_and_class_are_read_alike(section: str, component: str) -> None:
    for one in [one for one in ALL if one.key.partition(".")[0] == section and one.component == component]:
        option = parameters(owner_of(one)[0]).options[one.key.rpartition(".")[2]]
        assert writable(option.type) == one.type
        assert option.description


@pytest.mark.parametrize(("section", "component"), COMPONENTS)
def test_values_at_the_bounds_are_accepted_by_both(section: str, component: str, tmp_path: Path) -> None:
    for one in [one for one in ALL if one.key.partition(".")[0] == section and one.component == component]:
        for value in one.inside():
            for message in (load_with(tmp_path, component, {one.key: value}), construct(one, value)):
                assert one.type.describe() not in message


def test_choices_are_refused_in_python_as_in_a_recipe(tmp_path: Path) -> None:
    from retroflow.planning.options import TrainerOptions

    with pytest.raises(UsageError) as raised:
        TrainerOptions(strategy="dp")  # type: ignore[arg-type]
    assert str(raised.value) == 'trainer.strategy is "dp" (text); allowed: "auto", "ddp" or "fsdp". Did you mean "ddp"?'
    assert str(raised.value) in load_with(tmp_path, "", {"trainer.strategy": "dp"})


@checked_options("tree")
class Oak:
    def __init__(
        self,
        *,
        height: Annotated[float, Interval(gt=0, le=100)] = 1.0,
        leaves: Annotated[int, Ge(1)] | Literal["all"] = "all",
        rings: Annotated[list[Annotated[int, Ge(0)]], MinLen(1)] | None = None,
        name: Annotated[str, "a name"] = "oak",
        client: object = None,
    ) -> None:
        self.height, self.leaves = height, leaves


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"height": 0}, "tree.height is 0; allowed: a number above 0 and up to 100."),
        ({"height": float("nan")}, "tree.height is nan; allowed: a finite number."),
        ({"leaves": 0}, 'tree.leaves is 0; allowed: a whole number of at least 1 or "all".'),
        ({"leaves": True}, 'tree.leaves is true (a truth value); allowed: a whole number of at least 1 or "all".'),
        ({"leaves": 2**63}, f"tree.leaves is {2**63}; allowed: a whole number between -2**63 and 2**63."),
        ({"rings": []}, "tree.rings is a list of 0; allowed: a list that is not empty, each item a whole number of "),
        ({"rings": [3, -1]}, "tree.rings[1] is -1; allowed: a whole number of at least 0."),
        ({"height": -1, "leaves": 0}, "tree.leaves is 0"),
    ],
)
def test_what_an_annotation_does_not_allow_is_refused(values: dict[str, Any], message: str) -> None:
    for make in (lambda: Oak(**values), lambda: bind(Oak, values, where="oak", owner="tree")):
        with pytest.raises(UsageError) as raised:
            make()
        assert message in str(raised.value)
        assert len(str(raised.value).splitlines()) == len(values)


def test_numbers_of_numpy_and_whole_numbers_for_numbers_are_accepted() -> None:
    oak = Oak(height=np.float32(0.5), leaves=np.int64(3), client=object())  # type: ignore[arg-type]
    assert (oak.height, oak.leaves) == (0.5, 3)
    assert Oak(height=100, leaves="all", rings=[0]).height == 100


def test_a_plugin_without_the_decorator_is_checked_by_its_annotations_when_a_recipe_makes_it() -> None:
    def pine(*, width: Annotated[int, Ge(2), Lt(5)]) -> int:
        return width

    assert bind(pine, {"width": 4}, where="pine", owner="tree") == 4
    with pytest.raises(UsageError, match=r"^tree.width is 5; allowed: a whole number from 2 to below 5.$"):
        bind(pine, {"width": 5}, where="pine", owner="tree")


def test_other_markers_and_values_that_no_recipe_holds_are_passed_over() -> None:
    @checked_options("tree")
    class Elm:
        def __init__(
            self, a: Annotated[int, "doc"], b: Annotated[Path, Gt(0)], c: Annotated[int, Le(3)] | Path
        ) -> None:
            self.given = (a, b, c)

    assert Elm(-1, Path("x"), c=Path("y")).given == (-1, Path("x"), Path("y"))
    with pytest.raises(UsageError, match=r"^tree.c is 4; allowed: a whole number up to 3 or another object.$"):
        Elm(1, Path("x"), 4)
