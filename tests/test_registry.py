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


def test_a_closed_table_says_so() -> None:
    with pytest.raises(UnknownComponentError, match="No plugin can add to this table"):
        Registry("corpus", None, {"a": Entry("a:b")}).get("x")


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


def test_a_plugin_cannot_take_the_name_of_a_built_in(install: Install) -> None:
    install("thief", "faiss", "thief_module:A")
    registry = make()
    with pytest.raises(ComponentConflictError, match=r"retroflow 0\..* and thief 1\.2"):
        registry.get("faiss")


def test_a_distribution_found_twice_is_one_owner(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("mine", "mine", "mine_module:A")
    (tmp_path / "again").mkdir()
    (tmp_path / "mine-1.2.dist-info").rename(tmp_path / "again" / "mine-1.2.dist-info")
    install("mine", "mine", "mine_module:A")
    monkeypatch.syspath_prepend(str(tmp_path / "again"))
    assert make().get("mine")


@pytest.mark.parametrize(
    "source",
    ["raise ValueError('no')", "import sys; sys.exit(3)", "def broken(:", "import library_that_nobody_has", "B = 1"],
)
def test_a_broken_plugin_hurts_only_who_asks_for_it(install: Install, source: str) -> None:
    install("broken", "broken", "broken_module:A", source)
    registry = make()
    assert registry.get("exact")
    with pytest.raises(BrokenPluginError, match=r'retriever "broken" of broken 1\.2 cannot be loaded') as raised:
        registry.get("broken")
    assert raised.value.exit_code == 4


def test_a_plugin_without_its_module_is_missing(install: Install) -> None:
    install("gone", "gone", "gone_module:A", None)
    with pytest.raises(MissingExtraError, match='pip install --force-reinstall gone'):
        make().get("gone")


def test_an_interrupt_during_an_import_stays_an_interrupt(install: Install) -> None:
    install("slow", "slow", "slow_module:A", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        make().get("slow")
