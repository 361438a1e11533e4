"""Kinds of jobs: the functions wings declare with `@job`, and checking what they are given."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, TypeVar

from octavo.errors import Conflict, Invalid, NotFound, TooLarge

MAX_ARGUMENTS = 1 << 20
"""Bytes of a job's arguments as JSON."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_ZERO = re.compile(r"(?<!\\)(\\\\)*\\u0000")
"""A zero character as JSON writes it; after an odd number of backslashes the same letters are plain text."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Kind:
    """A function that workers run: `function(run, **arguments)` returns a JSON value."""

    name: str
    title: str
    function: Callable[..., Any]

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Refuse arguments the function does not take.

        Raises:
            Invalid: one is missing or unknown.
        """
        try:
            inspect.signature(self.function).bind(None, **arguments)
        except TypeError as error:
            raise Invalid(f"these arguments do not fit: {error}", f"job kind {self.name}", _usage(self)) from None


_kinds: dict[str, Kind] = {}


def job(name: str, *, title: str = "") -> Callable[[F], F]:
    """Declare a function as a kind of job.

    Args:
        name: its kind, `<wing>.<verb>`; lower case letters, digits, `_`, `.`, `-`.
        title: for people; the name when empty.

    Raises:
        Invalid: no such name.
        Conflict: another function has it.
    """
    check_name(name, "job kind")

    def declare(function: F) -> F:
        known = _kinds.get(name)
        if known is not None and known.function.__qualname__ != function.__qualname__:
            raise Conflict(f"job kind {name} is declared twice", function.__module__, "Give one another name.")
        _kinds[name] = Kind(name, title or name, function)
        return function

    return declare


def load_kinds(modules: Iterable[str]) -> Mapping[str, Kind]:
    """All kinds the modules declare, by name.

    Raises:
        NotFound: a module cannot be imported.
    """
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise NotFound(f"cannot import the job module {module}: {error}", module, "Is its extra there?") from error
    return MappingProxyType(_kinds)


def check_name(name: str, what: str) -> str:
    """`name`, when it has the form of names of kinds and schedules."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Invalid(f"not a name: {name!r:.120}", what, "Use up to 100 of a-z, 0-9, '_', '.', '-'.")
    return name


def encode_arguments(arguments: Mapping[str, Any] | None) -> str:
    """Arguments as canonical JSON.

    Raises:
        Invalid: not a JSON object.
        TooLarge: over `MAX_ARGUMENTS` bytes.
    """
    if not isinstance(arguments, Mapping | None):
        raise Invalid("not an object of names and values", "arguments", 'Write {"name": value, ...}.')
    given = dict(arguments or {})
    try:
        text = json.dumps(given, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"not JSON: {error}", "arguments", "Pass numbers, texts, lists and objects.") from None
    if any(not isinstance(name, str) for name in given):
        raise Invalid("a name is not a text", "arguments", 'Write {"name": value, ...}.')
    if _ZERO.search(text):
        raise Invalid("a text holds a zero character", "arguments", "Remove it.")
    if len(text) > MAX_ARGUMENTS:
        raise TooLarge(f"{len(text)} bytes of arguments", "arguments", f"Pass {MAX_ARGUMENTS} at most; name files.")
    return text


def _usage(kind: Kind) -> str:
    parameters = list(inspect.signature(kind.function).parameters.values())[1:]
    names = [p.name if p.default is p.empty else f"{p.name}={json.dumps(p.default)}" for p in parameters]
    return f"It takes: {', '.join(names) or 'nothing'}."
