import sys
import textwrap
from pathlib import Path

import pytest

from retroflow.errors import BrokenPluginError
from retroflow.options.types import REQUIRED, Block, Choice, Either, Fixed, Limits, Listed, Mapped, Option, Scalar
from retroflow.recipe.signatures import read_block


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))

    def write_module(name: str, source: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("import library_that_nobody_has\n" + textwrap.dedent(source))

    return write_module


def options(target: str) -> dict[str, Option]:
    return read_block(target, "owner 1.0").options


def test_every_annotation_that_yaml_can_express(write) -> None:
    write(
        "sig.py",
        """
        import typing
        from typing import Annotated, Literal, Optional, Sequence, Union
        Alias = int | None
        def make(*, a: int, b: float, c: str, d: bool, e: list[int], f: tuple[int, ...], g: tuple[int, str],
                 h: dict[str, float], i: typing.Literal["x", 2], j: Optional[str], k: Union[int, str], l: "int | None",
                 m: Alias, n: Annotated[int, "doc"], o: Sequence[str], p: list[list[int]], q: dict[str, int] | None): ...
        """,
    )
    none = Scalar("None")
    types = {key: option.type for key, option in options("sig:make").items()}
    assert types == {
        "a": Scalar("int"),
        "b": Scalar("float"),
        "c": Scalar("str"),
        "d": Scalar("bool"),
        "e": Listed(Scalar("int")),
        "f": Listed(Scalar("int")),
        "g": Fixed((Scalar("int"), Scalar("str"))),
        "h": Mapped(Scalar("float")),
        "i": Choice(("x", 2)),
        "j": Either((Scalar("str"), none)),
        "k": Either((Scalar("int"), Scalar("str"))),
        "l": Either((Scalar("int"), none)),
        "m": Either((Scalar("int"), none)),
        "n": Scalar("int"),
        "o": Listed(Scalar("str")),
        "p": Listed(Listed(Scalar("int"))),
        "q": Either((Mapped(Scalar("int")), none)),
    }
    assert all(option.default is REQUIRED for option in options("sig:make").values())


def test_ranges_are_read_from_annotations(write) -> None:
    write(
        "ranges.py",
        """
        import annotated_types as at
        from annotated_types import Ge, Interval, Le, Len, MinLen
        from typing import Annotated
        LEAST = 3
        Share = Annotated[float, Ge(0), at.Lt(1.5)]
        def make(*, a: Annotated[int, Ge(LEAST)], b: Share, c: Annotated[int, Ge(-1)] | None, d: "Annotated[str, MinLen(1)]",
                 e: Annotated[list[Share], Len(2)], f: Annotated[int | str, Interval(gt=0, le=9)],
                 g: Annotated[Share, Le(1)], h: Annotated[int, Ge(unknown()), "doc", Le(2)]): ...
        """,
    )
    share = Scalar("float", Limits(ge=0, lt=1.5))
    bounds = Limits(gt=0, le=9)
    assert {key: option.type for key, option in options("ranges:make").items()} == {
        "a": Scalar("int", Limits(ge=3)),
        "b": share,
        "c": Either((Scalar("int", Limits(ge=-1)), Scalar("None"))),
        "d": Scalar("str", Limits(min_length=1)),
        "e": Listed(share, Limits(min_length=2)),
        "f": Either((Scalar("int", bounds), Scalar("str", bounds))),
        "g": Scalar("float", Limits(ge=0, lt=1.5, le=1)),
        "h": Scalar("int", Limits(le=2)),
    }


def test_every_default_that_is_written_out(write) -> None:
    write(
        "defs.py",
        """
        from dataclasses import dataclass, field, KW_ONLY
        from typing import ClassVar
        LIMIT = 4
        @dataclass
        class Inner:
            x: int = 1
            y: str = "y"
        @dataclass
        class Outer:
            a: int = -3
            b: tuple[int, ...] = (1, 2)
            c: int = LIMIT
            d: list[int] = field(default_factory=lambda: [7])
            e: list[int] = field(default_factory=list)
            f: Inner = field(default_factory=Inner)
            g: Inner = Inner(x=5)
            h: str = field(default="h", repr=False)
            seen: ClassVar[int] = 3
            hidden: int = field(default=0, init=False)
        """,
    )
    assert {key: option.default for key, option in options("defs:Outer").items()} == {
        "a": -3,
        "b": [1, 2],
        "c": 4,
        "d": [7],
        "e": [],
        "f": {"x": 1, "y": "y"},
        "g": {"x": 5, "y": "y"},
        "h": "h",
    }
    assert options("defs:Outer")["f"].type == Block({"x": Option(Scalar("int"), 1), "y": Option(Scalar("str"), "y")})


def test_inherited_options_count(write) -> None:
    write(
        "heirs.py",
        """
        from dataclasses import dataclass
        class Parent:
            def __init__(self, *, a: int = 1): ...
        class Child(Parent, Generic[T]):
            pass
        @dataclass
        class Old:
            a: int = 1
            b: int = 2
        @dataclass
        class New(Old):
            b: int = 3
            c: int = 4
        class Nothing: pass
        """,
    )
    assert list(options("heirs:Child")) == ["a"]
    assert {key: option.default for key, option in options("heirs:New").items()} == {"a": 1, "b": 3, "c": 4}
    assert options("heirs:Nothing") == {}


def test_names_are_followed_through_packages_without_importing_them(write) -> None:
    write("pack/__init__.py", "from .deep.inner import Thing as Renamed")
    write("pack/deep/__init__.py", "raise RuntimeError('imported')")
    write(
        "pack/deep/inner.py",
        """
        from dataclasses import dataclass
        from ..options import Build
        if True:
            class Thing:
                def __init__(self, *, build: Build): ...
        """,
    )
    write("pack/options.py", "from dataclasses import dataclass\n@dataclass\nclass Build:\n    x: int = 0\n")
    assert options("pack:Renamed")["build"].type == Block({"x": Option(Scalar("int"), 0)})
    assert not [name for name in sys.modules if name == "pack" or name.startswith("pack.")]


def test_what_a_test_injects_is_no_option(write) -> None:
    write("odd.py", "class A:\n    def __init__(self, *, _client: Client | None = None, path: str | Path = 'x'): ...\n")
    assert options("odd:A") == {"path": Option(Scalar("str"), "x")}


def test_numbers_may_be_computed_from_constants(write) -> None:
    write(
        "sums.py",
        """
        BITS = 4
        def f(*, a: int = 2 * 8, b: int = 2**20, c: int = 1 << BITS, d: float = 1 / 4, e: int = -(3 + BITS), g: int = 7 % 4 - 9 // 2,
              h: list[int] = [1, 2 * 3]): ...
        """,
    )
    defaults = {key: option.default for key, option in options("sums:f").items()}
    assert defaults == {"a": 16, "b": 2**20, "c": 16, "d": 0.25, "e": -7, "g": -1, "h": [1, 6]}


def test_derived_parameters_are_no_options(write) -> None:
    write("der.py", "def f(*, a: int, b: Whatever): ...\n")
    assert list(read_block("der:f", "", frozenset({"b"})).options) == ["a"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def g(): ...", 'module "bad" does not define "f"'),
        ("def f(*, a): ...", 'bad.py:2: parameter "a" of f has no annotation. An option is int, float,'),
        ("def f(*,\n    a=1): ...", 'bad.py:3: parameter "a" of f has no annotation'),
        ("def f(*, a: Client): ...", 'parameter "a" of f has the annotation Client'),
        (
            "import enum\nclass E(enum.Enum): A = 1\ndef f(*, a: E = E.A): ...",
            'bad.py:4: parameter "a" of f has the annotation E',
        ),
        ("import numpy as np\ndef f(*, a: np.ndarray = None): ...", 'parameter "a" of f has the annotation np.ndarray'),
        ("def f(*, a: 'list[int' = 1): ...", 'parameter "a" of f has the annotation'),
        (
            "def f(*, a: int = os.cpu_count()): ...",
            'parameter "a" of f has the default os.cpu_count(), which is no constant',
        ),
        ("def f(*, a: int = 2 ** 2 ** 2 ** 2 ** 2): ...", "which is no constant"),
        ("def f(*, a: int = 1 // 0): ...", "which is no constant"),
        (
            "def f(*, a: int = 'seven'): ...",
            'the default of parameter "a" of f is "seven" (text); allowed: a whole number.',
        ),
        (
            "def f(*, a: int = None): ...",
            'the default of parameter "a" of f is nothing (null); allowed: a whole number.',
        ),
        (
            "from typing import Literal\ndef f(*, a: Literal['x', 'y'] = 'z'): ...",
            'the default of parameter "a" of f is "z"',
        ),
        ("def f(*words): ...", 'bad.py:2: f has the parameter "*words"; options are given by name'),
        ("class f:\n    def __init__(self, a: int = 1, **more): ...", 'bad.py:3: f has the parameter "**more"'),
        ("def f(a: int = 1, /): ...", 'f has the parameter "a" before /'),
        ("def f(*, name: str = 'x'): ...", 'bad.py:2: f has the parameter "name", by which recipes name the component'),
        ("class f(lib.Base): pass", "bad.py:2: f inherits from lib.Base, whose source is not found"),
        ("def f(:", "bad.py:2: not valid Python: "),
        ("f = 3", '"f = 3" is neither a class nor a function'),
        ("from bad import f", "lead in a circle"),
        ("from nowhere_at_all import f", 'there is no module "nowhere_at_all"'),
        ("from dataclasses import dataclass\n@dataclass\nclass f:\n    a: 'f'\n", "nested in itself"),
    ],
)
def test_options_that_cannot_be_read_name_the_owner(write, source: str, message: str) -> None:
    write("bad.py", source)
    with pytest.raises(BrokenPluginError) as raised:
        read_block("bad:f", "plugin 2.0")
    assert message in str(raised.value)
    assert "(plugin 2.0)" in str(raised.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"\n\n\ndef f(): ...  # caf\xe9\n", "latin.py:4: not UTF-8; save the file as UTF-8."),
        (b"# caf\xe9\ndef f(): ...\n", "latin.py: invalid or missing encoding declaration"),
        (b"# coding: klingon\ndef f(): ...\n", "latin.py: unknown encoding: klingon"),
        (b"def f(): ...\0", "latin.py: not valid Python"),
    ],
)
def test_bytes_that_are_no_text_name_the_file(write, tmp_path: Path, source: bytes, message: str) -> None:
    (tmp_path / "latin.py").write_bytes(source)
    with pytest.raises(BrokenPluginError) as raised:
        read_block("latin:f", "plugin 2.0")
    assert message in str(raised.value) and "(plugin 2.0)" in str(raised.value)


def test_a_class_that_inherits_from_what_adds_no_parameter_needs_no_init(write) -> None:
    write("fine.py", "class A(dict, Generic[T], typing.Protocol): pass\nclass B(A[int]): pass\n")
    assert options("fine:B") == {}


def test_a_module_without_source_is_named() -> None:
    with pytest.raises(BrokenPluginError, match='module "_socket" has no Python source|there is no module'):
        read_block("_socket:socket", "x 1")
