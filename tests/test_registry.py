import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from retroflow.errors import BrokenPluginError, ComponentConflictError, MissingExtraError, UnknownComponentError
from retroflow.registry import Entry, Registry

GROUP = "retroflow_test.retrievers"
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return install(distribution, name, target, source): put a distribution with one entry point on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def install_it(distribution: str, name: str, target: str, source: str | None = "class A: pass\n") -> None:
        metadata = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {target}\n")
        if source is not None:
            (tmp_path / f"{target.partition(':')[0]}.py").write_text(source)

    yield install_it
    for name in set(sys.modules) - before:
        del sys.modules[name]


def make(entries: dict[str, Entry] | None = None) -> Registry[type]:
    built_in = {"exact": Entry("collections:OrderedDict"), "faiss": Entry("collections:deque")}
    return Registry("retriever", GROUP, built_in if entries is None else entries)


def test_a_built_in_is_imported_when_asked_for_and_belongs_to_retroflow() -> None:
    registry = make()
    assert registry.names() == ["exact", "faiss"]
    assert registry.get("exact").__name__ == "OrderedDict"
    assert registry.origin("exact").startswith("retroflow 0.")


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownComponentError) as raised:
        make().get("fais")
    assert 'There is no retriever "fais". Did you mean "faiss"? Known: exact, faiss.' in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_missing_library_is_answered_with_the_pip_line() -> None:
    registry = make({"scann": Entry("nowhere:S", extra="scann", requires=("library_that_nobody_has",))})
    with pytest.raises(MissingExtraError) as raised:
        registry.get("scann")
    assert 'pip install "retroflow[scann]"' in str(raised.value)
    assert '"library_that_nobody_has"' in str(raised.value)
    assert raised.value.exit_code == 4
    assert registry.remedy("scann") == str(raised.value)


def test_a_plugin_enters_by_its_entry_point(install: Install) -> None:
    install("retroflow-mine", "mine", "mine_module:A")
    registry = make()
    assert registry.names() == ["exact", "faiss", "mine"]
    assert registry.origin("mine") == "retroflow-mine 1.2"
    assert registry.remedy("mine") is None
    assert "mine_module" not in sys.modules
    assert registry.get("mine").__name__ == "A"


def test_a_name_claimed_twice_is_an_error_for_who_asks_for_it_alone(install: Install) -> None:
    install("one", "mine", "mine_one:A")
    install("two", "mine", "mine_two:A")
    registry = make()
    with pytest.raises(ComponentConflictError, match=r'"mine" is claimed by one 1\.2 .* and two 1\.2') as raised:
        registry.get("mine")
    assert raised.value.exit_code == 4
    assert registry.get("exact")
    assert registry.names() == ["exact", "faiss", "mine"]
    assert "claimed by" in str(registry.remedy("mine"))
    assert "pip uninstall one or pip uninstall two" in str(raised.value)


def test_a_built_in_name_wins_over_a_plugin_and_whoever_uses_it_is_warned_once(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("thief", "faiss", "thief_module:A")
    registry = make()
    assert registry.names() == ["exact", "faiss"]
    for _ in range(2):
        assert registry.get("faiss").__name__ == "deque"
    assert registry.get("exact")
    warning = (
        'thief 1.2 declares the retriever "faiss" ("thief_module:A"): retroflow itself has that name, so the plugin\'s is '
        "ignored and cannot be used. Its authors have to give it another name."
    )
    assert capsys.readouterr().err == f"warning: {warning}\n"
    assert registry.passed_over() == registry.passed_over("faiss") == [warning]
    assert registry.passed_over("exact") == []


@pytest.mark.parametrize("name", ["my trees", "my.trees", "../evil", "Faiss", "-x", "gr\u00fcn"])
def test_a_name_that_is_none_is_passed_over_and_hurts_nobody(install: Install, name: str) -> None:
    install("odd", name, "odd_module:A")
    registry = make()
    assert registry.names() == ["exact", "faiss"]
    (sentence,) = registry.passed_over()
    assert f'odd 1.2 declares the retriever "{name}"' in sentence and "lower-case letters, digits, - and _" in sentence
    with pytest.raises(UnknownComponentError) as raised:
        registry.get(name)
    assert sentence in str(raised.value)


def test_an_error_that_cannot_be_shown_names_the_plugin_all_the_same(install: Install) -> None:
    source = "class Wordless(Exception):\n    def __str__(self): raise ValueError\nraise Wordless\n"
    install("mute", "mute", "mute_module:A", source)
    with pytest.raises(BrokenPluginError, match=r'"mute" of mute 1.2 cannot be loaded .*: Wordless: \(its message'):
        make().get("mute")


def test_a_distribution_found_twice_is_one_owner(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("mine", "mine", "mine_module:A")
    (tmp_path / "again").mkdir()
    (tmp_path / "mine-1.2.dist-info").rename(tmp_path / "again" / "mine-1.2.dist-info")
    install("mine", "mine", "mine_module:A")
    monkeypatch.syspath_prepend(str(tmp_path / "again"))
    assert make().get("mine")


BROKEN = {
    "raise ValueError('no')": "ValueError: no. Ask its authors; if you do not need it: pip uninstall broken",
    "import sys; sys.exit(3)": "SystemExit: 3. Ask its authors",
    "raise GeneratorExit": "GeneratorExit. Ask its authors",
    "import sys; sys.exit(0)": "SystemExit: 0. Ask its authors",
    "raise BaseException": "BaseException. Ask its authors",
    "raise OSError(2, 'gone')": "FileNotFoundError: [Errno 2] gone. Ask its authors",
    "raise MemoryError": "there is not enough memory to load it (MemoryError). Ask its authors",
    "def broken(:": "SyntaxError: invalid syntax (broken_module.py, line 1). Ask its authors",
    "import library_that_nobody_has.part": (
        'it needs the module "library_that_nobody_has", which is not installed. broken 1.2 does not declare which package '
        "brings it; ask its authors."
    ),
    "import broken_module.lost": "Some of its files are missing; install it again with: pip install --force-reinstall --no-deps broken",
    "B = 1": "has no attribute 'A'. Ask its authors",
}


@pytest.mark.parametrize(("source", "words"), BROKEN.items())
def test_a_broken_plugin_hurts_only_who_asks_for_it(install: Install, source: str, words: str) -> None:
    install("broken", "broken", "broken_module:A", source)
    registry = make()
    assert registry.get("exact")
    with pytest.raises(BrokenPluginError, match=r'retriever "broken" of broken 1\.2 cannot be loaded') as raised:
        registry.get("broken")
    assert raised.value.exit_code == 4
    assert words in str(raised.value)
    assert ("--force-reinstall" in str(raised.value)) == ("lost" in source)  # only where files are missing


@pytest.mark.parametrize("target", ["", "no_colon", "?? !!", "module:", "a:b c-d"])
def test_an_entry_point_that_names_nothing_is_told_to_who_asks(install: Install, target: str) -> None:
    install("garbage", "garbage", target, None)
    registry = make()
    assert registry.names() == ["exact", "faiss", "garbage"]
    with pytest.raises(
        BrokenPluginError, match=r'"garbage" of garbage 1\.2: .* "package\.module:Name" is needed'
    ) as raised:
        registry.get("garbage")
    assert registry.remedy("garbage") == str(raised.value)


def test_a_missing_library_that_is_declared_comes_with_its_pip_line(install: Install, tmp_path: Path) -> None:
    install("broken", "broken", "broken_module:A", "import library_that_nobody_has")
    with (tmp_path / "broken-1.2.dist-info" / "METADATA").open("a") as file:
        file.write("Requires-Dist: numpy\nRequires-Dist: nobody-has-it<3,>=2\nRequires-Dist: other; extra == 'x'\n")
    with pytest.raises(BrokenPluginError) as raised:
        make().get("broken")
    assert str(raised.value).endswith(
        'broken 1.2 declares to need nobody-has-it<3,>=2: pip install "nobody-has-it<3,>=2"'
    )


def test_a_plugin_without_its_module_is_missing(install: Install) -> None:
    install("gone", "gone", "gone_module:A", None)
    with pytest.raises(MissingExtraError, match="pip install --force-reinstall --no-deps gone"):
        make().get("gone")


def test_a_plugin_is_named_before_its_code_runs_and_what_it_prints_is_no_result(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("chatty", "chatty", "chatty_module:A", "print('hello')\nclass A: pass\n")
    registry = make()
    for _ in range(2):
        registry.get("chatty")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == 'loading retriever "chatty" of chatty 1.2 from "chatty_module:A"\nhello\n'
    registry.get("exact")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["chunky", "chunky-0.3"])
def test_a_distribution_without_metadata_is_called_as_its_folder(install: Install, tmp_path: Path, name: str) -> None:
    install("chunky", "chunky", "chunky_module:A")
    folder = tmp_path / "chunky-1.2.dist-info"
    (folder / "METADATA").unlink()
    folder.rename(tmp_path / f"{name}.dist-info")
    assert make().origin("chunky") == name.replace("-", " ")


def test_an_interrupt_during_an_import_stays_an_interrupt(install: Install) -> None:
    install("slow", "slow", "slow_module:A", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        make().get("slow")
