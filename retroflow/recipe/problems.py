"""Problems of a recipe: collected, sorted by file and line, and raised together."""

from dataclasses import dataclass, field
from typing import NamedTuple

from retroflow.errors import RecipeError, RetroflowError


class Origin(NamedTuple):
    """Where a value comes from: a file and its line, the command line, or a default."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


MAX_PROBLEMS = 100  # enough to read; a file that is not a recipe can have a problem in every line

COMMAND_LINE = Origin("command line")
DEFAULT = Origin("default")


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        origin: of the value.
        key: dotted key, empty if it concerns the file as a whole.
        text: what was given, what is allowed, what to do; completes "<origin>: <key> ...".
        cause: the error of a registry that found it, if one did.
    """

    origin: Origin
    key: str
    text: str
    cause: RetroflowError | None = None

    def __str__(self) -> str:
        return f"{self.origin}: {self.key} {self.text}" if self.key else f"{self.origin}: {self.text}"


@dataclass
class Problems:
    """Collects problems, so that all of them are reported at once.

    Attributes:
        title: of the recipe, for the first line of the message.
    """

    title: str = "The recipe"
    found: list[Problem] = field(default_factory=list)

    def add(self, origin: Origin, key: str, text: str, *, cause: RetroflowError | None = None) -> None:
        """Record a problem, once.

        Raises:
            RecipeError: there are too many.
        """
        problem = Problem(origin, key, text, cause)
        if problem not in self.found:
            self.found.append(problem)
        if len(self.found) >= MAX_PROBLEMS:
            self.raise_if_any()

    def names(self, key: str) -> bool:
        """Return whether this key has a problem."""
        return any(problem.key == key for problem in self.found)

    def raise_if_any(self) -> None:
        """Raise all problems, files before the command line and by line within a file.

        Raises:
            RetroflowError: the registry's error, if that is the only problem (with its exit code).
            RecipeError: otherwise.
        """
        if not self.found:
            return
        ordered = sorted(self.found, key=lambda one: (one.origin == COMMAND_LINE, *one.origin, one.key))
        if len(ordered) == 1:
            cause = ordered[0].cause
            raise (type(cause) if cause else RecipeError)(str(ordered[0])) from cause
        lines = "\n".join(f"  {problem}" for problem in ordered)
        more = " or more" if len(ordered) >= MAX_PROBLEMS else ""
        raise RecipeError(f"{self.title} has {len(ordered)}{more} errors:\n{lines}")
