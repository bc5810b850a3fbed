"""Options in groups: a group is a dataclass, its fields are options, and a verb names the groups it takes.

typer wants a function with one parameter an option; fifteen of them on every verb would be stated again and again.
:func:`flattened` gives typer that function and hands the verb whole groups.
"""

from __future__ import annotations

import copy
import inspect
import operator
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from convsv.registry import Registry

__all__ = ["VERBS", "Verb", "flattened", "verb"]

F = TypeVar("F", bound=Callable[..., None])


@dataclass(frozen=True)
class Verb:
    """A command.

    Attributes:
        function: what it does; its docstring is the help.
        example: a command line that runs, shown below the help.
        rank: place in the list of commands.
    """

    function: Callable[..., None]
    example: str
    rank: int


VERBS: Registry[Verb] = Registry("command", "convsv.cli")
"""All commands by name: one file a verb in this folder."""


def verb(*, example: str, rank: int) -> Callable[[F], F]:
    """Return a decorator that makes a function a command of the same name.

    Args:
        example: a command line that runs.
        rank: place in the list of commands.
    """

    def register(function: F) -> F:
        VERBS.add(function.__name__, Verb(function, example, rank))
        return function

    return register


def flattened(function: Callable[..., None]) -> Callable[..., None]:
    """Return ``function`` with every parameter that is a dataclass replaced by one parameter a field."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, type] = {
        name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)
    }
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in groups:
            parameters += _field_parameters(groups[name])
        else:
            parameters.append(parameter.replace(annotation=_plain(hints[name]), kind=inspect.Parameter.KEYWORD_ONLY))

    def call(**options: Any) -> None:
        grouped = {
            name: group(**{field.name: options.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        function(**grouped, **options)

    call.__name__, call.__doc__ = function.__name__, _reflowed(function.__doc__ or "")
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def _reflowed(doc: str) -> str:
    """Return a docstring with each paragraph on one line: the terminal's width decides where lines end."""
    return _literal("\n\n".join(" ".join(paragraph.split()) for paragraph in doc.split("\n\n")))


def _literal(text: str) -> str:
    """Return help in which typer finds no markup: it would swallow ``[plot]`` and ``[tool.convsv.check]``."""
    return re.sub(r"\[(?=[a-z#/@])", r"\[", text)


def _plain(annotation: Any) -> Any:
    """Return an option's annotation with help that holds no markup."""
    if get_origin(annotation) is not Annotated:
        return annotation
    kind, *details = get_args(annotation)
    details = [copy.copy(detail) for detail in details]
    for detail in details:
        if getattr(detail, "help", None):
            detail.help = _literal(detail.help)
    return operator.getitem(Annotated, (kind, *details))  # Annotated[kind, *details] is syntax from Python 3.11 on


def _field_parameters(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=_default(field), annotation=_plain(hints[field.name])
        )
        for field in fields(group)
    ]


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default
