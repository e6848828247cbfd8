import json
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

from retroflow import components
from retroflow.cli.main import run
from retroflow.registry import Registry
from retroflow.testing.registered import Outcome

Capture = pytest.CaptureFixture[str]

FINE = "class A:\n    def __init__(self, *, size: int = 1): raise ValueError\n"
PLUGINS = {  # name -> (target, source, what is said of it)
    "fine": ("fine_part:A", FINE, "available"),
    "raises": ("raising_part:A", "class A: pass\nraise ValueError\n", "available"),  # only loading it can tell
    "twice": ("twice_part:A", FINE, "is claimed by"),
    "lacks-library": (
        "lacking_part:A",
        "import os\nimport numpy, nobody_has_this.part\nif os.name == '?': import never\nclass A: pass\n",
        'needs the module "nobody_has_this", which is not installed',
    ),
    "gone": ("gone_part:A", None, 'needs the module "gone_part". Install it again'),
    "inner-gone": ("fine_part.inner:A", FINE, 'there is no module "fine_part.inner"'),
    "syntax": ("syntax_part:A", "x = 1\ndef f(:\n", "syntax_part.py:2: not valid Python: invalid syntax"),
    "latin": ("latin_part:A", "\n\n# caf\xe9\nclass A: pass\n", "latin_part.py:3: not UTF-8"),
    "no-such": ("fine_part:Missing", FINE, 'module "fine_part" does not define "Missing"'),
    "instance": ("instance_part:a", "class A: pass\na = A()\n", "is neither a class nor a function"),
    "no-colon": ("fine_part", FINE, '"package.module:Name" is needed'),
    "starred": ("starred_part:A", "class A:\n    def __init__(self, **more): ...\n", '"**more"'),
    "seven": ("seven_part:A", 'def A(*, size: int = "seven"): ...\n', 'parameter "size" of A is "seven" (text)'),
}


def test_every_kind_and_name_is_listed_with_its_distribution(capsys: Capture) -> None:
    assert run(["components"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for kind in ("corpus:", "embedder:", "retriever:", "model:", "tracker:"):
        assert kind in lines
    (exact,) = [line for line in lines if line.split()[0] == "exact"]
    assert exact.split()[1:] == ["retroflow", exact.split()[2], "available"]
    assert "Nothing was loaded; `retroflow doctor` loads" in lines[-1]


def test_what_is_missing_comes_with_its_pip_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retroflow.registry.missing_modules", lambda entry: list(entry.requires))
    assert run(["components"]) == 0
    (scann,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[0] == "scann"]
    assert 'pip install "retroflow[scann]"' in scann


def test_json_says_the_same(capsys: Capture) -> None:
    assert run(["components", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["model"][0].keys() == {"name", "owner", "available", "remedy"}
    assert [row["name"] for row in listed["retriever"]][:4] == ["exact", "faiss", "scann", "hnsw"]
    assert listed["passed_over"] == []


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return install(distribution, name, target): put a distribution with one part on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        metadata.Distribution, "entry_points", metadata.Distribution.entry_points
    )  # put back at the end
    monkeypatch.setattr(components, "KINDS", (Registry("part", "test.parts", {}),))

    def install_it(distribution: str, name: str, target: str) -> None:
        folder = tmp_path / f"{distribution}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[test.parts]\n{name} = {target}\n")

    return install_it


def test_broken_plugins_are_told_from_available_ones_without_running_them(
    install, tmp_path: Path, capsys: Capture
) -> None:
    for number, (name, (target, source, _)) in enumerate(PLUGINS.items()):
        install(f"dist{number}", name, target)
        if source is not None:
            (tmp_path / f"{target.partition(':')[0].partition('.')[0]}.py").write_bytes(source.encode("latin-1"))
    install("other", "twice", "twice_part:A")
    install("needy", "needy", "fine_part:A")
    with (tmp_path / "needy-1.0.dist-info" / "METADATA").open("a") as file:
        file.write("Requires-Dist: nobody-has-this>=2\n")
    install("odd", "My.Name", "fine_part:A")
    install("stranger", "x", "a:b")
    (tmp_path / "stranger-1.0.dist-info" / "entry_points.txt").write_bytes(b"[some.group]\n\xff = a:b\n")
    assert run(["components", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    said = {row["name"]: row["remedy"] or "available" for row in listed["part"]}
    assert said.keys() == PLUGINS.keys() | {"needy"}
    for name, (_, _, words) in PLUGINS.items():
        assert words in said[name], name
    assert "dist needy 1.0" not in said["needy"] and 'pip install "nobody-has-this>=2"' in said["needy"]
    unreadable, odd = listed["passed_over"]
    assert "stranger-1.0.dist-info: entry_points.txt cannot be read" in unreadable
    assert 'odd 1.0 declares the part "My.Name"' in odd
    assert not [name for name in sys.modules if name.endswith("_part") and "." not in name]
    assert run(["components"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("ignored:") + 1].strip() == unreadable


def test_check_runs_the_contract_of_a_component(capsys: Capture) -> None:
    assert run(["components", "check", "lexical", "dimension=32", "buckets=256"]) == 0
    *rules, last = capsys.readouterr().out.splitlines()
    assert rules[0] == "pass  can_be_made" and "pass  no_texts_give_no_rows" in rules
    assert [line for line in rules if not line.startswith("pass ")] == [
        "skip  has_another_fingerprint_with_an_option_that_changes_vectors: make_other_embedder() returns None: no option "
        "changes vectors"
    ]
    assert re.fullmatch(r'embedder "lexical" of retroflow \S+: \d+ pass, 0 fail, 1 skip', last)


def test_check_exits_with_1_if_a_rule_is_broken(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [Outcome("is_round", "fail", "it is square\n  in line 3"), Outcome("is_red", "pass", "")]
    monkeypatch.setattr("retroflow.testing.registered.check", lambda kind, name, options: iter(outcomes))
    assert run(["components", "check", "exact"]) == 1
    assert capsys.readouterr().out.splitlines()[:2] == ["fail  is_round: it is square", "pass  is_red"]
    assert run(["components", "check", "exact", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["pass"], said["fail"], said["skip"]) == ("retriever", 1, 1, 0)
    assert said["rules"][0] == {"rule": "is_round", "outcome": "fail", "why": "it is square\n  in line 3"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["exat"], 'There is no component "exat"'),
        (["exat", "--kind", "retriever"], 'There is no retriever "exat". Did you mean "exact"'),
        (["exact", "--kind", "searcher"], '--kind is "searcher"; allowed: corpus, embedder'),
        (["exact", "--kind", "tracker"], 'There is no tracker "exact"'),
        (["exact", "search.blocks=3"], "search.blocks"),
        (["exact", "bogus=3"], "bogus is not a known key. Keys of the component: build, search."),
        (["faiss", "search.nprobe=many"], "search.nprobe"),
        (["jsonl"], "path is missing; it has no default. Allowed: text that is not empty. Write path=VALUE."),
    ],
)
def test_check_refuses_what_it_cannot_find(capsys: Capture, words: list[str], message: str) -> None:
    assert run(["components", "check", *words]) == 2
    assert message in capsys.readouterr().err


def test_check_asks_for_the_kind_of_a_name_that_several_have(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Registry("embedder", None, {"exact": components.RETRIEVERS.entry("exact")})
    monkeypatch.setattr(components, "KINDS", (both, components.RETRIEVERS))
    assert run(["components", "check", "exact"]) == 2
    assert 'are called "exact"; add --kind embedder or --kind retriever' in capsys.readouterr().err


def test_check_of_a_component_without_its_extra_exits_with_4(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retroflow.registry.missing_modules", lambda entry: list(entry.requires))
    assert run(["components", "check", "scann"]) == 4
    assert 'pip install "retroflow[scann]"' in capsys.readouterr().err
