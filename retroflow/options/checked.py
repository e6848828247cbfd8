"""Make components of options: from a recipe's mapping (`bind`), or called in Python (`checked_options`)."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from retroflow.errors import UsageError
from retroflow.options.annotations import parameters
from retroflow.options.fitting import Complaint, Fitting, sentences
from retroflow.options.types import REQUIRED

Component = TypeVar("Component", bound=type)


def _usage_error(complaints: Sequence[Complaint], owner: str) -> UsageError:
    return UsageError("\n".join(sentences(complaints, owner)))


def checked_options(
    owner: str, *, error: Callable[[Sequence[Complaint], str], Exception] = _usage_error
) -> Callable[[Component], Component]:
    """Let a class refuse arguments that its annotations do not allow, and take the others in their annotated form.

    Subclasses with an `__init__` of their own, such as dataclasses, need the decorator again.

    Args:
        owner: what the options are called in a recipe: "retriever.search" for those of `retriever.search.nprobe`.
        error: makes the exception of the complaints and the owner.
    """

    def decorate(component: Component) -> Component:
        made: Any = component.__init__  # type: ignore[misc]
        signature = inspect.signature(made)

        @functools.wraps(made)
        def _checked(self: Any, *args: Any, **words: Any) -> None:
            bound = signature.bind(self, *args, **words)
            known = parameters(component).options
            values = {name: value for name, value in bound.arguments.items() if name in known}
            bound.arguments |= _fitted(component, values, owner, error)
            made(*bound.args, **bound.kwargs)

        component.__init__ = _checked  # type: ignore[misc]
        return component

    return decorate


def bind(component: Callable[..., Any], options: Mapping[str, Any], *, where: str, owner: str = "") -> Any:
    """Call a component with options as keyword arguments; nested mappings become the dataclasses of the annotations.

    Args:
        component: a class or a function with annotated parameters.
        options: plain values.
        where: what a message calls the component.
        owner: what the options are part of in a recipe.

    Raises:
        UsageError: an option without a parameter, a parameter without default that no option fills, or a value that
            its annotation does not allow.
    """
    known = parameters(component).options
    unknown = [name for name in options if name not in known]
    if unknown:
        raise UsageError(f"{where} has no option {_quoted(unknown)}. Its options: {', '.join(known)}.")
    needed = [name for name, option in known.items() if option.default is REQUIRED and name not in options]
    if needed:
        raise UsageError(f"{where} needs a value for {_quoted(needed)}.")
    return component(**_fitted(component, options, owner, _usage_error))


def _fitted(
    component: Callable[..., Any],
    values: Mapping[str, Any],
    owner: str,
    error: Callable[[Sequence[Complaint], str], Exception],
) -> dict[str, Any]:
    fitting, known = Fitting(), parameters(component).options
    fitted = {name: fitting.fit(value, known[name].type, (name,)) for name, value in values.items()}
    if fitting.complaints:
        raise error(fitting.complaints, owner)
    return fitted


def _quoted(keys: list[str]) -> str:
    return ", ".join(f'"{key}"' for key in keys)
