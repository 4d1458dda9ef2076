"""YAML with line numbers: a file becomes plain values plus the line of every key."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from hw_profiles.errors import Problem, ProfileError

PathKey = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)

MAX_DEPTH = 16
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# YAML 1.1 reads `3.35e12` as text; people mean a number.
_FLOAT = re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?([eE][-+]?\d+)?")


class Document:
    """The values of one YAML file, and where each of them stands."""

    def __init__(self, path: Path, shown: str) -> None:
        self.shown = shown
        self.lines: dict[PathKey, int] = {(): 1}
        self._problems: list[Problem] = []
        self._visited: set[int] = set()
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ProfileError([Problem(shown, 0, f"cannot be read: {error.strerror}")]) from error
        except UnicodeDecodeError as error:
            raise ProfileError([Problem(shown, 0, "is no text file (UTF-8)")]) from error
        try:
            node = yaml.compose(text, Loader=_LOADER)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            message = getattr(error, "problem", None) or str(error).splitlines()[0]
            line = min(mark.line + 1, text.count("\n") + 1) if mark else 0
            raise ProfileError([Problem(shown, line, f"is no valid YAML: {message}")]) from error
        except RecursionError as error:
            raise ProfileError([Problem(shown, 0, "is nested too deeply")]) from error
        if not isinstance(node, yaml.MappingNode):
            raise ProfileError([Problem(shown, 1, "must hold a mapping of keys to values")])
        self.value: dict[str, Any] = self._mapping(node, ())
        if self._problems:
            raise ProfileError(self._problems)

    def line(self, path: PathKey) -> int:
        """The line of the value at this path, or of the nearest thing around it."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]

    def find(self, word: str) -> PathKey | None:
        """The first place where this is a key, one of the names in a key (`a, b: ...`), or a value."""
        for path in self.lines:
            if path and word in str(path[-1]).split(", "):
                return path
            if self._at(path) == word:
                return path
        return None

    def _at(self, path: PathKey) -> Any:
        value: Any = self.value
        for part in path:
            value = value[part]
        return value

    def problem(self, path: PathKey, message: str) -> Problem:
        """A problem with the value at this path."""
        return Problem(self.shown, self.line(path), message)

    def _value(self, node: yaml.Node, path: PathKey) -> Any:
        if len(path) > MAX_DEPTH:
            line = node.start_mark.line + 1
            self._problems.append(Problem(self.shown, line, "is nested too deeply"))
            return None
        if not isinstance(node, yaml.ScalarNode):
            if id(node) in self._visited:  # it may even contain itself
                line = node.start_mark.line + 1
                self._problems.append(Problem(self.shown, line, "YAML anchors and aliases are not allowed"))
                return None
            self._visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            values = []
            for index, item in enumerate(node.value):
                self.lines[(*path, index)] = item.start_mark.line + 1
                values.append(self._value(item, (*path, index)))
            return values
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: PathKey) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key, str) or key_node.tag == "tag:yaml.org,2002:merge":
                self._problems.append(Problem(self.shown, line, "a key must be plain text"))
                continue
            if key in result:
                first = self.lines[(*path, key)]
                message = f"key '{key}' is given twice (first on line {first})"
                self._problems.append(Problem(self.shown, line, message))
                continue
            self.lines[(*path, key)] = line
            result[key] = self._value(value_node, (*path, key))
        return result

    def _scalar(self, node: yaml.Node, path: PathKey) -> Any:
        text = str(node.value)
        kind = node.tag.rpartition(":")[2]
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() in {"true", "yes", "on"}
        plain = getattr(node, "style", None) not in {"'", '"', "|", ">"}
        if plain and kind in {"int", "float", "str"} and _FLOAT.fullmatch(text):
            number = text.replace("_", "")[:40]  # more digits mean nothing, and int() would refuse thousands
            return int(number) if number.lstrip("+-").isdigit() else float(number)
        if kind in {"str", "timestamp"}:
            return text
        if kind in {"int", "float"}:  # octal, sexagesimal, .inf and their like
            message = f"write {path[-1]!r} as a plain decimal number, not {text!r}"
        else:
            message = f"YAML tag {node.tag!r} is not allowed here"
        self._problems.append(Problem(self.shown, node.start_mark.line + 1, message))
        return text


def validated(document: Document, schema: type[M]) -> M:
    """The document as a value of the schema.

    Raises:
        ProfileError: with a problem for each violation, at its line.
    """
    try:
        return schema.model_validate(document.value)
    except ValidationError as error:
        raise ProfileError(sorted(_problems(document, schema, error), key=lambda p: p.line)) from error


def _problems(document: Document, schema: type[BaseModel], error: ValidationError) -> Iterator[Problem]:
    for item in error.errors(include_url=False):
        loc: PathKey = tuple(part for part in item["loc"] if part != "[key]")
        key = ".".join(str(part) for part in loc)
        if item["type"] == "extra_forbidden":
            known = _known_keys(schema, loc[:-1])
            message = f"unknown key '{loc[-1]}'{suggestion(str(loc[-1]), known)}"
        elif item["type"] == "missing":
            message = f"key '{key}' is missing"
        elif item["type"] == "value_error":
            reason = str(item["ctx"]["error"])
            message = f"{key}: {reason}" if key else reason
            if not loc:
                loc = _mentioned(document, reason)
        else:
            message = f"{key}: {item['msg'][:1].lower()}{item['msg'][1:]}, not {item['input']!r:.60}"
        yield document.problem(loc, message)


def _mentioned(document: Document, reason: str) -> PathKey:
    """Where the thing stands that a message about the whole profile speaks of: what it quotes, else the first
    top-level key that it names."""
    for word in re.findall(r"'([^']+)'", reason):
        found = document.find(word)
        if found is not None:
            return found
    for word in re.findall(r"[A-Za-z_]+", reason):
        if word in document.value:
            return (word,)
    return ()


def suggestion(word: str, known: list[str]) -> str:
    """' (did you mean ...?)' where something known comes close."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _known_keys(schema: type[BaseModel], path: PathKey) -> list[str]:
    """The keys that the schema allows at this path."""
    current: Any = schema
    for part in path:
        if isinstance(current, type) and issubclass(current, BaseModel):
            fields = {field.alias or name: field for name, field in current.model_fields.items()}
            current = fields[str(part)].annotation if part in fields else None
        else:
            current = typing.get_args(current)[-1] if typing.get_args(current) else None
        current = _unwrapped(current)
    if isinstance(current, type) and issubclass(current, BaseModel):
        return [field.alias or name for name, field in current.model_fields.items()]
    return []


def _unwrapped(annotation: Any) -> Any:
    """`X | None` -> X."""
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return next(arg for arg in typing.get_args(annotation) if arg is not type(None))
    return annotation
