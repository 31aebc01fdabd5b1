"""Options of a constructor as text NAME=VALUE, read by the types of its signature."""

import ast
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from score_jax import build
from score_jax.build import ConfigError


def read(flag: str, name: str, make: Callable, items: Iterable[str]) -> dict[str, Any]:
    """The keyword arguments of `make` that items stand for.

    Numbers are finite, at least 0, and within what `build.rules` says of an option of this name.

    Args:
      flag, name: the flag that the items come from, and what `make` makes, for messages.
    Raises:
      ConfigError: an option that `make` has not, or a value not of its type.
    """
    known, given = inspect.signature(make).parameters, {}
    for item in items:
        option, equals, text = item.partition("=")
        if option not in known or not equals:
            wanted = build.choose(option, known) if known else "it has none"
            raise ConfigError(f"--{flag}={item}: write NAME=VALUE with a name of {name}; {wanted}")
        given[option] = _value(f"--{flag}={item}", text, known[option])
    return given


def listed(make: Callable) -> list[str]:
    """The options of `make` as they are written, each with its default."""
    return [f"{p.name}={p.default}" for p in inspect.signature(make).parameters.values()]


def _value(where: str, text: str, parameter: inspect.Parameter):
    kinds = _kinds(parameter.annotation)
    if str in kinds:
        if text not in (choices := build.CHOICES[parameter.name]):
            raise ConfigError(f"{where}: {build.choose(text, choices)}")
        return text
    values = [_number(part, int in kinds) for part in text.split(",")]
    lengths = [len(typing.get_args(kind)) for kind in kinds if typing.get_origin(kind) is tuple]
    if None in values or len(values) != (lengths or [1])[0]:
        example = 8 if parameter.default is None else parameter.default
        how = f"a {'whole ' if int in kinds else ''}number, as {parameter.name}={example}"
        if lengths:
            how = f"{lengths[0]} numbers, as {parameter.name}=0.3,3"
        raise ConfigError(f"{where} must be {how}")
    rules = [("finite and at least 0", lambda value: 0 <= value <= sys.float_info.max)]
    for words, holds in rules + build.rules(None, parameter.name):
        if not all(map(holds, values)):
            raise ConfigError(f"{where} must be {words}")
    values = [int(value) if int in kinds else float(value) for value in values]
    return tuple(values) if lengths else values[0]


def _kinds(annotation):
    is_union = isinstance(annotation, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _number(text, is_whole):
    """None if it is none."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return None
    if isinstance(value, bool) or not isinstance(value, int if is_whole else (int, float)):
        return None
    return value
