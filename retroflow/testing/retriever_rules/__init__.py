"""The rules of RetrieverContract, by name: each a function of a RetrieverCase that raises if the rule is broken."""

from collections.abc import Callable
from types import ModuleType

from retroflow.testing.retriever_case import RetrieverCase
from retroflow.testing.retriever_rules import answers, declaration, given, instances, sizes, storage, texts

Rule = Callable[[RetrieverCase], None]


def _rules_of(module: ModuleType) -> dict[str, Rule]:
    return {
        name: rule
        for name, rule in vars(module).items()
        if callable(rule) and getattr(rule, "__module__", "") == module.__name__ and name in module.__all__
    }


RULES: dict[str, Rule] = {
    name: rule
    for module in (declaration, answers, texts, sizes, given, instances, storage)
    for name, rule in _rules_of(module).items()
}
