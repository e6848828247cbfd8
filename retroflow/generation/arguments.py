"""Errors about the arguments of generation; commands show flags in them, Python callers see arguments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retroflow.errors import GenerationError
from retroflow.options.fitting import Complaint, hint


@dataclass(frozen=True)
class Problem:
    """A wrong argument.

    Attributes:
        argument: its name in Python, such as "top_k" or "prompts".
        text: what was given, what is allowed, what to do; one that begins with "is" continues the name.
        row: which of the prompts or stop texts it is, from 0; None for other arguments.
    """

    argument: str
    text: str
    row: int | None = None

    @property
    def python_name(self) -> str:
        """The argument as Python code has it: `top_k`, `prompts[3]`."""
        return self.argument if self.row is None else f"{self.argument}[{self.row}]"


class ArgumentError(GenerationError):
    """Arguments that the model cannot generate with; the message has one line for each.

    Args:
        problems: at least one.
        name_of: returns the name to show for a problem; its Python name by default.
    """

    def __init__(
        self, problems: Sequence[Problem], name_of: Callable[[Problem], str] = lambda problem: problem.python_name
    ) -> None:
        joints = [" " if problem.text.startswith("is ") else ": " for problem in problems]
        lines = [f"{name_of(one)}{joint}{one.text}" for one, joint in zip(problems, joints, strict=True)]
        super().__init__("\n".join(lines))
        self.problems = tuple(problems)

    @classmethod
    def of_complaints(cls, complaints: Sequence[Complaint], owner: str) -> "ArgumentError":
        """Make the error about values that annotations do not allow."""
        problems = []
        for complaint in complaints:
            name, *rows = complaint.path
            text = complaint.text + hint(complaint, complaint.key(owner))
            problems.append(Problem(str(name), text, int(rows[0]) if rows else None))
        return cls(problems)

    def renamed(self, name_of: Callable[[Problem], str]) -> "ArgumentError":
        """Return the same error with other names for the arguments, such as flags."""
        return ArgumentError(self.problems, name_of)


def unfit(argument: str, text: str) -> ArgumentError:
    """Return the error about one argument.

    Args:
        argument: its name in Python.
        text: what was given, what is allowed, what to do.
    """
    return ArgumentError([Problem(argument, text)])
