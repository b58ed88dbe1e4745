"""Tables of TOML types to dataclasses and back: fields are checked, and a `name` chooses a class.

Unknown keys, wrong types and impossible combinations raise `ConfigError` with the key and the nearest valid
one.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from burnish.recipe import NAMES, Plugin


class ConfigError(ValueError):
    """A recipe that cannot be run; the message names the key and what was expected."""


def merge(table: Mapping[str, Any], over: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`table` with the fields of `over` in their place, table by table.

    Another `name` takes another class, and starts its table anew; one in the place of a number does too.
    path: the dotted key of both, for messages
    """
    anew = "name" in over and over["name"] != table.get("name")
    merged = {} if anew else dict(table)
    for key, value in over.items():
        if isinstance(value, Mapping):
            inner, whole = merged.get(key, {}), _join(path, key)
            if not isinstance(inner, Mapping) and "name" in value:
                inner = {}
            if not isinstance(inner, Mapping):
                raise ConfigError(f"{whole}.{next(iter(value), '')}: {whole} is not a table")
            merged[key] = merge(inner, value, whole)
        else:
            merged[key] = value
    return merged


def build(hint: Any, value: Any, path: str, default: Any = dataclasses.MISSING) -> Any:
    """`value` (of TOML types) as the type `hint`.

    path: its dotted key, for messages
    default: what the field is where it is left out. A table is laid over it, if it is one of the classes;
        else a table without a `name` is of the first class
    """
    if get_origin(hint) is Mapping:
        return _named_tables(get_args(hint)[1], value, path)
    options = {_class(kind): kind for kind in _options(hint) if _class(kind) is not None}
    classes = [cls for cls in options if cls is not None]
    if not classes:
        return _plain(hint, value, path)
    if not isinstance(value, Mapping):
        return _instead_of_a_table(hint, classes, value, path)
    table = merge(as_table(default), value, path) if type(default) in classes else dict(value)
    named = any(cls in NAMES for cls in classes)
    cls = _chosen(classes, table, path, default) if named else classes[0]
    return _construct(cls, _hints(options[cls]), table, path)


def _named_tables(hint: Any, value: Any, path: str) -> dict[str, Any]:
    """Tables by names of the user's own."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} = {value!r}, expected tables, each with a name: {path}.NAME")
    return {name: build(hint, each, _join(path, name)) for name, each in value.items()}


def _class(kind: Any) -> type | None:
    """The dataclass that `kind` is, or that it is with its parameters filled in; None for any other type."""
    cls = get_origin(kind) or kind
    return cls if isinstance(cls, type) and dataclasses.is_dataclass(cls) else None


def _construct(cls: type, hints: Mapping[str, Any], table: dict[str, Any], path: str) -> Any:
    for key in table:
        if key not in hints:
            raise ConfigError(f"{_join(path, key)}: there is no such key{nearest(key, hints)}")
    fields = {each.name: each for each in dataclasses.fields(cls)}
    for name, each in fields.items():
        required = each.default is each.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise ConfigError(f"{_join(path, name)} is missing, and it has no default")
    values = {
        key: build(hints[key], value, _join(path, key), _default(fields[key]))
        for key, value in table.items()
    }
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(_join(path, str(error))) from error


def _default(field: dataclasses.Field[Any]) -> Any:
    """What the field is where it is left out; MISSING if it must not be."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _chosen(classes: Sequence[type], table: dict[str, Any], path: str, default: Any) -> type:
    """The class that `table`'s `name` calls; the name is taken out."""
    name = table.pop("name", None)
    if name is None and default is not dataclasses.MISSING:
        return classes[0]
    if not isinstance(name, str):
        raise ConfigError(f"{path}.name is missing, expected one of: {_choices(classes)}")
    if Plugin in classes and ":" in name:
        table["target"] = name
        return Plugin
    named = {NAMES[cls]: cls for cls in classes if cls is not Plugin}
    if name not in named:
        raise ConfigError(f"{path}.name = {name!r}: there is no such one{nearest(name, named)}")
    return named[name]


def _plain(hint: Any, value: Any, path: str, otherwise: str = "") -> Any:
    if isinstance(value, list):
        value = tuple(value)
    try:
        return TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        what = error.errors()[0]["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        raise ConfigError(f"{path} = {value!r}, expected {what}{otherwise}") from error


def _instead_of_a_table(hint: Any, classes: Sequence[type], value: Any, path: str) -> Any:
    """A number or the like, where `hint` has it beside its classes."""
    plain = [kind for kind in _options(hint) if _class(kind) is None and kind is not types.NoneType]
    table = f"a table ({_choices(classes)})"
    if not plain:
        raise ConfigError(f"{path} = {value!r}, expected {table}")
    return _plain(Union[tuple(plain)], value, path, f", or {table}")  # noqa: UP007


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """The types of the fields of a dataclass; of one with parameters, with these filled in."""
    cls = _class(kind)
    assert cls is not None
    names = {each.name for each in dataclasses.fields(cls)}
    hints = {name: hint for name, hint in get_type_hints(cls).items() if name in names}
    given = dict(zip(getattr(cls, "__parameters__", ()), get_args(kind), strict=True))
    return {name: _filled(hint, given) for name, hint in hints.items()}


def _filled(hint: Any, given: Mapping[Any, Any]) -> Any:
    if hint in given:
        return given[hint]
    wanted = getattr(hint, "__parameters__", ())
    return hint[tuple(given[each] for each in wanted)] if wanted else hint


def _choices(classes: Sequence[type]) -> str:
    names = [NAMES[cls] for cls in classes if cls is not Plugin and cls in NAMES]
    return ", ".join([*names, *(["module:attribute"] if Plugin in classes else [])])


def nearest(key: str, valid: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(key, list(valid), n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Known: {', '.join(sorted(valid))}"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def as_table(value: Any) -> Any:
    """A recipe, or a part of it, of TOML types; fields that are None are left out."""
    if isinstance(value, Mapping):
        return {key: as_table(each) for key, each in value.items()}
    if not dataclasses.is_dataclass(value):
        return value
    if isinstance(value, Plugin):
        return {"name": value.target}
    fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    inner = {key: as_table(item) for key, item in fields.items() if item is not None}
    name = NAMES.get(type(value))
    return inner if name is None else {"name": name, **inner}
