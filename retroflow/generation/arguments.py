"""What is wrong with the arguments of generation, said in the words of whoever gave them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retroflow.errors import GenerationError


@dataclass(frozen=True)
class Problem:
    """What is wrong with one argument.

    Attributes:
        argument: its name in Python, such as "top_k" or "prompts".
        text: what was given, what is allowed, what to do.
        row: which of the prompts it is, from 0; None for other arguments.
    """

    argument: str
    text: str
    row: int | None = None

    @property
    def python_name(self) -> str:
        """The argument as a caller in Python writes it: `top_k`, `prompts[3]`."""
        return self.argument if self.row is None else f"{self.argument}[{self.row}]"


class ArgumentError(GenerationError):
    """Arguments that the model cannot generate with; the message has a line for each, by its name in Python.

    Args:
        problems: at least one.
        name_of: how an argument is called.
    """

    def __init__(
        self, problems: Sequence[Problem], name_of: Callable[[Problem], str] = lambda problem: problem.python_name
    ) -> None:
        super().__init__("\n".join(f"{name_of(problem)}: {problem.text}" for problem in problems))
        self.problems = tuple(problems)

    def renamed(self, name_of: Callable[[Problem], str]) -> "ArgumentError":
        """The same error with other names for the arguments, such as flags."""
        return ArgumentError(self.problems, name_of)


def unfit(argument: str, text: str) -> ArgumentError:
    """Make the error about one argument.

    Args:
        argument: its name in Python.
        text: what was given, what is allowed, what to do.
    """
    return ArgumentError([Problem(argument, text)])
