"""Fit values to the types of options: what is wrong is noted, what is right comes back in its final form."""

import json
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from retroflow.options.types import (
    BROKEN,
    REQUIRED,
    Anything,
    Block,
    Choice,
    Fixed,
    Listed,
    Mapped,
    OptionType,
    Scalar,
    arms_of,
    block_of,
)

LARGEST = 2**63  # whole numbers are below it: no library takes larger ones, and most say so in the middle of a run

_PYTHON_TYPES: Mapping[str, type] = {"int": int, "float": float, "str": str, "bool": bool, "None": type(None)}


class Complaint(NamedTuple):
    """One value that does not fit.

    Attributes:
        path: keys and, in lists, positions that lead to it.
        text: what was given and what is allowed; completes "<key> ...".
        type: what is allowed; None for a key that is not known.
        value: what was given; REQUIRED if nothing was.
    """

    path: tuple[str | int, ...]
    text: str
    type: OptionType | None = None
    value: Any = None

    def key(self, owner: str = "") -> str:
        """Return the dotted key, `layers[1]` for an item of a list.

        Args:
            owner: what the key is part of, such as "retriever.search".
        """
        key = owner
        for part in self.path:
            key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
        return key


class Fitting:
    """Walks values along their types.

    Args:
        placeholder: a text that marks a value that must still be given.

    Attributes:
        complaints: what did not fit.
    """

    def __init__(self, *, placeholder: str | None = None) -> None:
        self.complaints: list[Complaint] = []
        self._placeholder = placeholder

    def fit(self, value: Any, option_type: OptionType, path: tuple[str | int, ...] = ()) -> Any:
        """Return value in the form that its type asks for, with BROKEN for each part that does not fit.

        A whole number becomes a float where one is expected, numpy's numbers Python's, and a mapping the dataclass
        of its block.
        """
        if value is BROKEN:
            return value
        if self._placeholder is not None and isinstance(value, str) and value == self._placeholder:
            text = f"is {value}: it must be given. Allowed: {option_type.describe()}."
            return self._refuse(path, text, option_type, BROKEN)
        plain = _plain(value)
        arm = _fitting_arm(plain, option_type)
        if isinstance(arm, Anything):
            return value
        if arm is None:
            text = f"is {describe(value)}; allowed: {option_type.describe()}."
            return self._refuse(path, text, option_type, value)
        if isinstance(arm, Block):
            return self._fit_block(value, arm, path)
        if isinstance(arm, Mapped):
            return {part: self.fit(child, arm.value, (*path, part)) for part, child in value.items()}
        allowed = _broken_limit(plain, arm, option_type)
        if allowed:
            shown = f'"{plain}"' if isinstance(plain, str) else describe(plain) if isinstance(arm, Listed) else plain
            return self._refuse(path, f"is {shown}; allowed: {allowed}.", option_type, BROKEN)
        if isinstance(arm, Listed | Fixed):
            types = arm.items if isinstance(arm, Fixed) else (arm.item,) * len(plain)
            pairs = enumerate(zip(plain, types, strict=True))
            items = [self.fit(child, one, (*path, position)) for position, (child, one) in pairs]
            return tuple(items) if isinstance(arm, Fixed) else arm.container(items)
        return float(plain) if isinstance(arm, Scalar) and arm.kind == "float" else plain

    def _fit_block(self, value: Any, block: Block, path: tuple[str | int, ...]) -> Any:
        if block.made is not None and isinstance(value, block.made):
            return value
        before = len(self.complaints)
        fitted = {}
        for part, child in value.items():
            if part in block.options:
                fitted[part] = self.fit(child, block.options[part].type, (*path, part))
            else:
                text = f"is not a known key.{suggest(part, block.options)} Known: {', '.join(block.options)}."
                self.complaints.append(Complaint((*path, part), text, None, child))
        for part, option in block.options.items():
            if part not in value and option.default is REQUIRED:
                text = f"is missing; it has no default. Allowed: {option.type.describe()}."
                self.complaints.append(Complaint((*path, part), text, option.type, REQUIRED))
        return block.made(**fitted) if block.made is not None and len(self.complaints) == before else fitted

    def _refuse(self, path: tuple[str | int, ...], text: str, option_type: OptionType, value: Any) -> Any:
        self.complaints.append(Complaint(path, text, option_type, value))
        return BROKEN


def _plain(value: Any) -> Any:
    """Return numpy's numbers as Python's."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _fitting_arm(value: Any, option_type: OptionType) -> OptionType | None:
    """Return the arm of a type that a value is meant for, by its outer shape; None if there is none."""
    arms = arms_of(option_type)
    fitting = [arm for arm in arms if _has_shape(value, arm)]
    if not fitting and isinstance(value, int) and not isinstance(value, bool):
        fitting = [arm for arm in arms if isinstance(arm, Scalar) and arm.kind == "float"]
    fitting = fitting or [arm for arm in arms if isinstance(arm, Anything)]
    admitting = (arm for arm in fitting if not isinstance(arm, Scalar) or arm.limits.admit(value))
    return next(admitting, fitting[0] if fitting else None)


def _has_shape(value: Any, arm: OptionType) -> bool:
    if isinstance(arm, Scalar):
        return type(value) is _PYTHON_TYPES[arm.kind]  # True is an int to isinstance
    if isinstance(arm, Choice):
        return any(value == allowed and type(value) is type(allowed) for allowed in arm.values)
    if isinstance(arm, Fixed):
        return isinstance(value, list | tuple) and len(value) == len(arm.items)
    if isinstance(arm, Listed):
        return isinstance(value, list | tuple)
    if isinstance(arm, Block) and arm.made is not None and isinstance(value, arm.made):
        return True
    return isinstance(arm, Mapped | Block) and isinstance(value, Mapping)


def _broken_limit(value: Any, arm: OptionType, option_type: OptionType) -> str:
    """Return what is allowed for a value of the right type that is out of its limits; empty if it is not."""
    if not isinstance(arm, Scalar | Listed):
        return ""
    if isinstance(arm, Scalar) and arm.kind == "float" and not _is_finite(value):
        return "a finite number"
    if isinstance(arm, Scalar) and arm.kind == "int" and abs(value) >= LARGEST:
        return "a whole number between -2**63 and 2**63"
    return "" if arm.limits.admit(value) else option_type.describe()


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False


def describe(value: Any) -> str:
    """Return value and type in words: '"12" (text)', '3 (a whole number)', 'a list of 2', 'nothing (null)'."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if value is None:
        return "nothing (null)"
    if isinstance(value, str):
        return f'"{value if len(value) <= 60 else value[:57] + "..."}" (text)'
    if isinstance(value, bool):
        return f"{str(value).lower()} (a truth value)"
    if isinstance(value, int | float):
        return f"{value} ({'a whole number' if isinstance(value, int) else 'a number'})"
    return f"{value!r:.60} (of type {type(value).__name__})"


def hint(complaint: Complaint, key: str, *, in_shell: bool = False) -> str:
    """Return a sentence that says what to write instead, with a space before it; empty where nothing can be guessed.

    Args:
        complaint: about a value.
        key: how the value is called.
        in_shell: the value was written in a shell, as key=value.
    """
    value, arms = complaint.value, arms_of(complaint.type) if complaint.type is not None else ()
    if value is REQUIRED:
        return f" Write {key}=VALUE." if in_shell else ""
    if isinstance(value, str):
        for arm in arms:
            if isinstance(arm, Choice):
                return suggest(value, [choice for choice in arm.values if isinstance(choice, str)])
        if any(_fitting_arm(_unquoted(value), arm) not in (None, Anything()) for arm in arms):
            return " Remove the quotes."
        block = next(filter(None, map(block_of, arms)), None)
        if block is not None and "name" in block.options:
            return f" Write {key}.name={value}." if in_shell else f" Write {{name: {value}}}."
    elif isinstance(value, bool | int | float):
        if any(isinstance(arm, Scalar) and arm.kind == "str" for arm in arms):
            written = str(value).lower() if isinstance(value, bool) else value
            return f" Write {key}='\"{written}\"'." if in_shell else f' Write it in quotes: "{written}".'
        if any(isinstance(arm, Listed) and _fitting_arm(value, arm.item) is not None for arm in arms):
            return f" Write [{value}]."
    return ""


def _unquoted(text: str) -> Any:
    """Return what a text would be without quotes."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def nearest(given: str, known: Iterable[str]) -> str | None:
    """Return the known word nearest to a given one, None if none is near; initials count ("lr" is learning_rate)."""
    folded = {word.lower().replace("-", "_"): word for word in reversed(list(known))}
    close = get_close_matches(given.lower().replace("-", "_"), list(folded), n=1, cutoff=0.6)
    if close:
        return folded[close[0]]
    return {"".join(part[:1] for part in word.split("_")): word for word in folded.values() if "_" in word}.get(given)


def suggest(given: str, known: Iterable[str]) -> str:
    """Return ' Did you mean "x"?' for the nearest known word, empty if none is near."""
    near = nearest(given, known)
    return f' Did you mean "{near}"?' if near else ""


def sentences(complaints: Sequence[Complaint], owner: str) -> list[str]:
    """Return a sentence for each complaint.

    Args:
        complaints: about values that were given in Python or JSON.
        owner: what their keys are part of.
    """
    keys = [complaint.key(owner) for complaint in complaints]
    return [f"{key} {one.text}{hint(one, key)}" for key, one in zip(keys, complaints, strict=True)]
