"""Whether a component can be used, as far as that is seen without running any of its code."""

from typing import Any

from retroflow.distributions import missing_requirements
from retroflow.errors import RetroflowError
from retroflow.recipe.signatures import read_block
from retroflow.recipe.source import imported_packages
from retroflow.registry import Registry, is_installed


def find_fault(registry: Registry[Any], name: str, derived: frozenset[str] = frozenset()) -> str | None:
    """Look at a component: is its name claimed once, its module there and Python, does it define the component?

    Further, whether its parameters can become options, and whether the packages are installed that its module imports
    at the top and that a plugin's distribution declares to need. What happens while it is imported is not known.

    Args:
        registry: the component's kind.
        name: its name.
        derived: parameters that are no options.

    Returns:
        What stands in the way and what to do, None if nothing was found.
    """
    remedy = registry.remedy(name)
    if remedy is not None:
        return remedy
    entry = registry.entry(name)
    try:
        read_block(entry.target, entry.owner, derived)
    except RetroflowError as error:
        return str(error)
    missing = [package for package in imported_packages(entry.module) if not is_installed(package)]
    if missing:
        needed = registry.describe_missing_library(name, missing)
        return f'{registry.kind} "{name}" of {entry.owner} cannot be loaded: {needed}'
    lacking = missing_requirements(entry.distribution) if entry.is_plugin else []
    if lacking:
        words = " ".join(f'"{requirement}"' for requirement in lacking)
        return f"{entry.owner} declares to need {' and '.join(lacking)}, not installed here: pip install {words}"
    return None
