"""What `components check` makes of options: paths that name the same file in every process, and files that are missing."""

from types import SimpleNamespace
from typing import Any

import pytest

from retroflow.errors import UsageError
from retroflow.testing import ModelContract, registered


class Recorder:
    """Takes a suite, and runs nothing."""

    options: dict[str, Any]

    def __init__(self, suite: Any) -> None:
        Recorder.options = suite.registered[2]

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, rule: Any) -> None:
        raise AssertionError("not run")


def test_paths_are_made_absolute_and_names_and_patterns_are_not(tmp_path, monkeypatch) -> None:
    for name in ("docs/a.md", "retroflow/b.md", "model/config.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registered, "RuleRunner", Recorder)
    given = {"path": "docs", "valid_path": "*/b.md", "include": "**/*.md", "packages": ["retroflow"], "share": 0.5}
    (outcome,) = registered.check("corpus", "text", given | {"part": {"model": "./model", "kind": "model"}})
    assert outcome.outcome == "fail"
    assert Recorder.options == given | {
        "path": str(tmp_path / "docs"),
        "valid_path": str(tmp_path / "*/b.md"),
        "part": {"model": str(tmp_path / "model"), "kind": "model"},
    }


def test_missing_files_are_said_once_and_before_the_rules(tmp_path) -> None:
    suite = registered.suite_of("corpus", "jsonl", {"path": str(tmp_path / "none.jsonl")})
    with pytest.raises(UsageError, match="none.jsonl"):
        registered.can_be_made(SimpleNamespace(suite=suite()))

    class Model(ModelContract):
        def make(self) -> Any:
            return self

        def build(self) -> Any:
            raise UsageError("there is no base")

    with pytest.raises(UsageError, match="there is no base"):
        registered.can_be_made(SimpleNamespace(suite=Model()))
