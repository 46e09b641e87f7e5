"""What is read back from JSON, held against the types of the dataclass that it is to become."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def typed(cls: Any, record: object, names: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The fields `names` of dataclass `cls` in a record; what else it holds is left out.

    By default those without a default value, and of the others those that are there.

    Raises ValueError, on one line, when it lacks some, or when one is of another type or not finite.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"{cls.__name__} record is {type(record).__name__}, not an object")
    if names is None:
        names = tuple(f.name for f in fields(cls) if f.name in record or f.default is MISSING)
    missing = [name for name in names if name not in record]
    if missing:
        raise ValueError(f"{cls.__name__} record lacks {', '.join(missing)}")
    tests = _tests(cls)
    wrong = [name for name in names if not tests[name](record[name])]
    if wrong:
        raise ValueError(
            f"{cls.__name__} record: {wrong[0]} is not {str(get_type_hints(cls)[wrong[0]]).removeprefix('typing.')}"
        )
    return {name: record[name] for name in names}


Test = Callable[[Any], bool]


@cache
def _tests(cls: type) -> dict[str, Test]:
    return {name: _test(hint) for name, hint in get_type_hints(cls).items()}


@cache
def _test(hint: Any) -> Test:
    """Whether a value from JSON is what a type hint says. A whole number will do for a float."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value: True
    if (plain := _plain(hint)) is not None:
        return lambda value: type(value) in plain and (type(value) is not float or math.isfinite(value))
    if origin is Literal:
        return lambda value: type(value) is str and value in inner
    if origin is list:
        return _list_of(inner[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        of = _test(inner[1])
        return lambda value: type(value) is dict and all(map(of, value.values()))
    tests = [_test(option) for option in inner]
    return lambda value: any(test(value) for test in tests)


def _list_of(hint: Any) -> Test:
    """The same for a list: the columns of trees are long, so most of it is left to the interpreter's own loops."""
    item, plain = _test(hint), _plain(hint)
    if plain is None:
        return lambda value: type(value) is list and all(map(item, value))
    if float not in plain:
        return lambda value: type(value) is list and plain.issuperset(map(type, value))
    return lambda value: type(value) is list and plain.issuperset(map(type, value)) and all(map(item, value))


def _plain(hint: Any) -> frozenset[type] | None:
    """The types of a hint that is made of plain ones; None for others."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if not all(option in (str, int, float, bool, NoneType) for option in options):
        return None
    return frozenset(options) | (frozenset([int]) if float in options else frozenset())
