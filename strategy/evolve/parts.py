"""A policy module taken apart into the pieces that edits work on, and put together again.

Comments and formatting inside a piece are kept as they are (libcst), so that what comes out reads as if a
person had moved the pieces.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import libcst as cst

from strategy.evolve.static import PARAMETERS
from strategy.evolve.syntax import parse

API = "strategy.policy_api"
LINE_LENGTH = 110


@dataclass(frozen=True, slots=True)
class Parts:
    """The pieces of one policy. Functions and constants in the order of the source, each by name."""

    docstring: str
    modules: frozenset[str]
    """Imported as `import NAME`."""
    names: Mapping[str, str]
    """Imported as `from MODULE import NAME`: name -> module."""
    constants: Mapping[str, str]
    """Module-level assignments, with the comments that belong to them."""
    functions: Mapping[str, str]

    def render(self) -> str:
        """The source of the policy: only what its four functions need, imports in order."""
        parts = self.pruned()
        blocks = [f'"""{parts.docstring.strip()}\n"""' if "\n" in parts.docstring else _line_doc(parts)]
        if imports := parts._imports():
            blocks.append(imports)
        if parts.constants:
            blocks.append("\n".join(parts.constants.values()))
        head = "\n\n".join(blocks)
        return "\n\n\n".join([head, *parts.functions.values()]) + "\n"

    def pruned(self) -> Parts:
        """Without the constants, helpers and imports that nothing uses."""
        needed = self.needed_by(PARAMETERS)
        return replace(
            self,
            modules=self.modules & needed,
            names={n: m for n, m in self.names.items() if n in needed},
            constants={n: text for n, text in self.constants.items() if n in needed},
            functions={n: text for n, text in self.functions.items() if n in needed},
        )

    def needed_by(self, roots: Iterable[str], stop: Iterable[str] = ()) -> frozenset[str]:
        """All names that these functions use, directly or through helpers and constants; what functions in
        `stop` use in turn does not count."""
        needed: set[str] = set()
        first = frozenset(roots)
        todo = [name for name in first if name in self.functions]
        while todo:
            name = todo.pop()
            if name in needed:
                continue
            needed.add(name)
            if name in stop and name not in first:
                continue
            piece = self.functions.get(name) or self.constants.get(name)
            if piece:
                todo += used_names(piece)
        return frozenset(needed)

    def _imports(self) -> str:
        plain = [f"import {module}" for module in sorted(self.modules)]
        by_module: dict[str, list[str]] = {}
        for name, module in self.names.items():
            by_module.setdefault(module, []).append(name)
        others = [_from(m, names) for m, names in sorted(by_module.items()) if m != API]
        groups = ["\n".join(plain + others)] if plain or others else []
        if API in by_module:
            groups.append(_from(API, by_module[API]))
        return "\n\n".join(groups)


@lru_cache(maxsize=256)
def take_apart(source: str) -> Parts:
    """The pieces of a policy that passes the static check.

    Raises:
        ValueError: does not parse, or holds something else at its top level.
    """
    try:
        module = cst.parse_module(source)
    except cst.ParserSyntaxError as error:
        raise ValueError(f"does not parse: {error}") from error
    modules: set[str] = set()
    names: dict[str, str] = {}
    constants: dict[str, str] = {}
    functions: dict[str, str] = {}
    for node, statement in zip(module.body, parse(source).body, strict=True):
        text = module.code_for_node(node).strip("\n")
        if isinstance(statement, ast.FunctionDef):
            functions[statement.name] = text
        elif isinstance(statement, ast.Import):
            modules.update(alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            names.update({alias.name: statement.module or "" for alias in statement.names})
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            if not isinstance(target, ast.Name):
                raise ValueError(  # noqa: TRY004  the value of the source, not its type
                    f"line {statement.lineno}: cannot take apart an assignment to several names"
                )
            constants[target.id] = text
        elif not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            raise ValueError(  # noqa: TRY004
                f"line {statement.lineno}: cannot take apart a {type(statement).__name__}"
            )
    docstring = ast.get_docstring(parse(source)) or ""
    return Parts(docstring, frozenset(modules), names, constants, functions)


def graft(target: Parts, donor: Parts, function: str) -> Parts:
    """`target` with this function of `donor`, and all that it needs.

    Constants of the same name are one knob and keep the target's value; helpers of the same name but another
    text are renamed after the function that they came with.
    """
    others = frozenset(PARAMETERS) - {function}
    needed = donor.needed_by([function], stop=others) - others
    taken = {n: text for n, text in donor.functions.items() if n in needed}
    clashing = [
        n
        for n in taken
        if n != function and n in target.functions and _code(taken[n]) != _code(target.functions[n])
    ]
    names = _fresh_names(clashing, function, {*target.functions, *donor.functions})
    taken = {names.get(n, n): rename(text, names) for n, text in taken.items()}
    functions: dict[str, str] = {}
    for name, text in {**target.functions, function: ""}.items():
        if name == function:
            functions.update(taken)
        elif name not in taken:
            functions[name] = text
    constants = dict(target.constants)
    for name, text in donor.constants.items():
        if name in needed:
            constants.setdefault(name, text)
    return replace(
        target,
        modules=target.modules | (donor.modules & needed),
        names={**target.names, **{n: m for n, m in donor.names.items() if n in needed}},
        constants=constants,
        functions=functions,
    ).pruned()


@lru_cache(maxsize=4096)
def used_names(piece: str) -> tuple[str, ...]:
    """Names that a piece of source reads, in the order of appearance."""
    found = [n.id for n in ast.walk(parse(piece)) if isinstance(n, ast.Name)]
    return tuple(dict.fromkeys(found))


def rename(piece: str, names: Mapping[str, str]) -> str:
    """A piece with names exchanged; attributes and keywords of calls stay."""
    if not names:
        return piece
    return cst.parse_module(piece).visit(_Rename(names)).code


def summary(piece: str) -> str:
    """The first line of a function's docstring, without its full stop."""
    node = parse(piece).body[0]
    text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
    return (text or "").strip().split("\n", 1)[0].strip().rstrip(".")


def describe(parts: Parts, headline: str, why: str) -> Parts:
    """The parts with a module docstring that says what the policy is and why it came to be."""
    lines = [textwrap.shorten(headline.rstrip("."), LINE_LENGTH - 4, placeholder=" ...") + ".", ""]
    lines += [*textwrap.wrap(why, LINE_LENGTH), ""] if why else []
    labels = {"should_replan": "Trigger", "plan": "Planner", "route": "Routing", "priority": "Queue order"}
    for function, label in labels.items():
        if text := summary(parts.functions.get(function, "pass")):
            lines += textwrap.wrap(f"{label}: {text}.", LINE_LENGTH, subsequent_indent="    ")
    return replace(parts, docstring="\n".join(lines).strip().replace('"""', "'''"))


class _Rename(cst.CSTTransformer):
    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def leave_Name(  # noqa: N802  libcst's naming
        self, original_node: cst.Name, updated_node: cst.Name
    ) -> cst.Name:
        return updated_node.with_changes(value=self._names.get(original_node.value, original_node.value))

    def leave_Attribute(  # noqa: N802
        self, original_node: cst.Attribute, updated_node: cst.Attribute
    ) -> cst.Attribute:
        return updated_node.with_changes(attr=original_node.attr)

    def leave_Arg(self, original_node: cst.Arg, updated_node: cst.Arg) -> cst.Arg:  # noqa: N802
        return updated_node.with_changes(keyword=original_node.keyword)


def _fresh_names(clashing: Iterable[str], function: str, taken: set[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in clashing:
        fresh, number = f"{name}_to_{function}", 2
        while fresh in taken:
            fresh, number = f"{name}_to_{function}_{number}", number + 1
        names[name] = fresh
        taken.add(fresh)
    return names


def _code(piece: str) -> str:
    return ast.dump(parse(piece))


def _from(module: str, names: list[str]) -> str:
    ordered = sorted(set(names), key=_isort_key)
    line = f"from {module} import {', '.join(ordered)}"
    if len(line) <= LINE_LENGTH and module != API:
        return line
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in ordered) + ")"


def _isort_key(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions, as ruff sorts them."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2), name


def _line_doc(parts: Parts) -> str:
    return f'"""{parts.docstring.strip() or "A policy."}"""'
