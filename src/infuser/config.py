"""Configuration: YAML to the library's own dataclasses and back. Unknown keys and wrong values name their key path."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from infuser.errors import InfuserError, listed, require

C = TypeVar("C")
MAX_BYTES = 1_000_000  # a config is text that a person wrote; anything larger is not one


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds, read safely: no tags, no code, no aliases.

    Raises:
        InfuserError: the file is missing, too large, not UTF-8, not YAML, or not a mapping.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InfuserError(f"cannot read the configuration {path.name}", got=str(error)) from error
    if len(raw) > MAX_BYTES:
        raise InfuserError("the configuration is too large", got=f"{len(raw)} bytes", expected=f"at most {MAX_BYTES}")
    try:
        text = raw.decode("utf-8")
        # Aliases let a few lines unfold into gigabytes, and no setting needs them.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise InfuserError(f"{path.name} uses YAML aliases", remedy="write the value out")
        value = yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise InfuserError(f"{path.name} is not valid YAML", got=str(error).replace("\n", " ")) from error
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InfuserError(f"{path.name} must hold a mapping of settings", got=type(value).__name__)
    return value


def is_yaml(what: str) -> bool:
    """Return whether a word of the command line is the path of a configuration."""
    return Path(what).suffix in (".yaml", ".yml")


def of_data(what: str) -> dict[str, Any]:
    """Return the settings that a YAML file holds, or that the name of a data set stands for."""
    return read_yaml(what) if is_yaml(what) else {"data": what}


def parse(cls: type[C], values: Mapping[str, Any]) -> C:
    """Return the dataclass `cls` built of nested mappings.

    Raises:
        InfuserError: an unknown key or a wrong value, named by its path ("recipe.lr").
    """
    _check_keys(cls, values, ())
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        problems = [f"{'.'.join(_path(e['loc'])) or '(top)'}: {e['msg']} (got {e['input']!r})" for e in error.errors()]
        raise InfuserError("the configuration has wrong values", got=listed(problems)) from error


def dump(value: Any) -> str:
    """Return a dataclass as YAML that `parse` reads back."""
    plain = TypeAdapter(type(value)).dump_python(value, mode="json")
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def commented(value: Any, command: str, first: Sequence[str] = ()) -> str:
    """Return a dataclass as YAML, each setting under its line of the docstring and the words that it may take.

    Args:
        value: the settings.
        command: of infuser, that takes the file.
        first: lines that stand before them.
    """
    lines = [f"# A configuration of infuser; every setting is shown. Run it with: infuser {command} THIS-FILE", *first]
    notes, hints = _notes(type(value)), typing.get_type_hints(type(value))
    inner: dict[str, Any] = {}  # of the setting that the line belongs to
    for line in dump(value).splitlines():
        key = line.split(":")[0]
        if key in notes:
            inner = typing.get_type_hints(hints[key]) if dataclasses.is_dataclass(hints[key]) else {}
            note = " ".join([notes[key], *_choices(hints[key])])
            lines += ["", *(f"# {part}" for part in textwrap.wrap(note, 110, break_long_words=False))]
        told = _choices(inner[key.strip()]) if key.strip() in inner else []
        lines.append("  # ".join([line, *told]))
    return "\n".join(lines) + "\n"


def _choices(hint: Any) -> list[str]:
    """Return a sentence that names the words which a setting may take, if these are known.

    >>> _choices(typing.Literal["a", "b"] | None)
    ['One of: a, b, null.']
    """
    several = typing.get_origin(hint) is tuple
    words = _words(hint)
    return [f"{'Any' if several else 'One'} of: {', '.join(words)}."] if words else []


def _words(hint: Any) -> list[str]:
    if typing.get_origin(hint) is typing.Literal:
        return [str(choice) for choice in typing.get_args(hint)]
    parts = typing.get_args(hint)
    found = [word for part in parts for word in _words(part)]
    return [*found, "null"] if found and type(None) in parts else found


def _notes(cls: type) -> dict[str, str]:
    """Return the Attributes section of a docstring: field -> sentence. So no field is described twice."""
    section = (cls.__doc__ or "").partition("Attributes:")[2]
    return {name: " ".join(text.split()) for name, text in re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", section, re.M)}


def canonical(value: C) -> C:
    """Return a dataclass as `parse` reads it back from its own YAML: a radius of 16 is one of 16.0."""
    return parse(type(value), yaml.safe_load(dump(value)))


def override(values: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return `values` with "a.b=c" settings put in; the right side is read as YAML.

    >>> override({"recipe": {"lr": 0.1}}, ["recipe.lr=0.2", "k=5"])
    {'recipe': {'lr': 0.2}, 'k': 5}
    """
    result = _copy(values)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise InfuserError("a setting must read key=value", got=setting, expected="for example recipe.lr=0.02")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: 2024-13-45 looks like a date
            raise InfuserError(f"the value of {path} is not valid YAML", got=text) from error
        result = replaced(result, path, value)
    return result


def replaced(values: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return `values` with the setting at a dotted path put in.

    >>> replaced({"recipe": {"lr": 0.1}}, "recipe.lr", 0.2)
    {'recipe': {'lr': 0.2}}
    """
    result = _copy(values)
    *parents, last = path.split(".")
    inner = result
    for key in parents:
        inner = inner.setdefault(key, {})
        if not isinstance(inner, dict):
            raise InfuserError(f"{key} in {path} is a value, not a group of settings", got=inner)
    inner[last] = value
    return result


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over` laid on top, group by group."""
    result = _copy(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def resolve(name: str, namespace: Any, allow_code: bool = False) -> Callable[..., Any]:
    """Return the public callable `name` of a module, or what "module:function" names.

    Raises:
        InfuserError: the name is unknown, or names code and `allow_code` is False.
    """
    if ":" not in name:
        if name in namespace.__all__:
            return cast("Callable[..., Any]", getattr(namespace, name))
        close = difflib.get_close_matches(name, namespace.__all__, 1)
        raise InfuserError(
            f"{name} is not in {namespace.__name__}",
            expected=", ".join(namespace.__all__) + ", or module:function",
            remedy=f"did you mean {close[0]}?" if close else None,
        )
    if not allow_code:
        raise InfuserError(
            "the configuration asks to run code", got=name, remedy="read that code, then pass --allow-code"
        )
    module, _, function = name.partition(":")
    # The user's own module usually lies beside the configuration, where python -m would look.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return cast("Callable[..., Any]", getattr(importlib.import_module(module), function))
    except (ImportError, AttributeError) as error:
        raise InfuserError(f"cannot import {name}", got=str(error)) from error


def _path(parts: Sequence[Any]) -> list[str]:
    return [str(part) for part in parts if not str(part)[:1].isupper()]


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _check_keys(cls: Any, values: Any, path: tuple[str, ...]) -> None:
    classes = _dataclasses_in(cls)
    if not classes or not isinstance(values, Mapping):
        return
    hints: dict[str, Any] = {}
    for each in classes:
        hints |= typing.get_type_hints(each)
    fields = {field.name for each in classes for field in dataclasses.fields(each)}
    for key, value in values.items():
        where = ".".join((*path, str(key)))
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, 1)
            raise InfuserError(
                f"unknown setting {where}",
                expected=", ".join(sorted(fields)),
                remedy=f"did you mean {'.'.join((*path, close[0]))}?" if close else None,
            )
        # Read as numbers, true and false would be 1 and 0.
        if any(isinstance(item, bool) for item in (value if isinstance(value, list) else [value])):
            require(where, value, _takes_bool(hints[key]), "no true or false")
        _check_keys(hints[key], value, (*path, key))


def _takes_bool(hint: Any) -> bool:
    return hint in (bool, Any) or any(_takes_bool(part) for part in typing.get_args(hint))


def _dataclasses_in(cls: Any) -> list[type]:
    if typing.get_origin(cls) in (typing.Union, types.UnionType):
        return [inner for arg in typing.get_args(cls) for inner in _dataclasses_in(arg)]
    return [cls] if dataclasses.is_dataclass(cls) and isinstance(cls, type) else []
