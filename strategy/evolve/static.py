"""The static check of a policy's source: quick, exact about the line, and lint only.

It turns away what cannot work or would not be replayable, before a process is spent on it. What keeps a
hostile policy in its place is the sandbox, not this.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from strategy.evolve.syntax import parse
from strategy.evolve.worker.importable import IMPORTABLE

PARAMETERS: dict[str, tuple[str, ...]] = {
    "should_replan": ("obs", "memo"),
    "plan": ("obs", "budget_s", "memo"),
    "route": ("request", "replicas", "memo"),
    "priority": ("request", "replica", "memo"),
}
"""The four functions of a policy, and what they are called with."""

ALLOWED_IMPORTS = frozenset(IMPORTABLE)
FORBIDDEN_NAMES = frozenset(
    {
        "__import__",
        "breakpoint",
        "compile",
        "delattr",
        "dir",
        "eval",
        "exec",
        "exit",
        "getattr",
        "globals",
        "hash",
        "help",
        "id",
        "input",
        "locals",
        "memoryview",
        "object",
        "open",
        "print",
        "quit",
        "setattr",
        "super",
        "type",
        "vars",
    }
)
"""Reflection and input/output; `id` and `hash` differ from run to run."""

MAX_SOURCE_BYTES = 64 * 1024
MAX_NODES = 20_000
MAX_DEPTH = 80
MAX_LITERAL_CHARS = 4_000
_MUTATORS = frozenset(
    {
        "append",
        "add",
        "clear",
        "discard",
        "extend",
        "insert",
        "pop",
        "popitem",
        "remove",
        "setdefault",
        "sort",
        "update",
    }
)


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule that a source breaks. `line` counts from 1; 0 is the module as a whole."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}" if self.line else self.message


def check_policy(source: str) -> list[Violation]:
    """Everything that is wrong with a policy's source, in order of line; empty: nothing is."""
    return list(_check(source))


@lru_cache(maxsize=1024)
def _check(source: str) -> list[Violation]:
    if len(source.encode("utf-8", "replace")) > MAX_SOURCE_BYTES:
        return [Violation(0, f"the source is longer than {MAX_SOURCE_BYTES} bytes")]
    try:
        tree = parse(source)
        depth_and_size = list(_measure(tree))
    except SyntaxError as error:
        return [Violation(error.lineno or 0, f"does not parse: {error.msg}")]
    except (ValueError, RecursionError, MemoryError) as error:
        return [Violation(0, f"does not parse: {error}")]
    if depth_and_size:
        return depth_and_size
    found = [*_check_module(tree), *_check_functions(tree)]
    constants = _module_names(tree)
    for node in ast.walk(tree):
        found += _check_node(node)
        if isinstance(node, ast.FunctionDef):
            found += _check_state(node, constants)
    return sorted(set(found), key=lambda v: (v.line, v.message))


@lru_cache(maxsize=1024)
def normalised_digest(source: str) -> str:
    """Identity of what a policy does, not of how it is written: 16 hex digits over the syntax tree without
    comments, docstrings, annotations, unused imports and the last digits of constants.

    Raises:
        SyntaxError: the source does not parse.
    """
    tree = _Normal().visit(parse(source))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    body = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [a for a in node.names if (a.asname or a.name) in used]
            node.names.sort(key=lambda a: a.name)
            if not node.names:
                continue
        body.append(node)
    tree.body = sorted(body, key=_place)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _place(node: ast.stmt) -> tuple[int, str]:
    """Imports, constants and functions may stand in any order: put them into one."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return 0, ast.dump(node)
    if isinstance(node, ast.FunctionDef):
        return 2, node.name
    return 1, ast.dump(node)


class _Normal(ast.NodeTransformer):
    """Strips what makes no difference."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        if node.body and _is_text(node.body[0]):
            node.body = node.body[1:] or [ast.Pass()]
        return node

    def visit_Module(self, node: ast.Module) -> ast.AST:
        self.generic_visit(node)
        node.body = [statement for statement in node.body if not _is_text(statement)]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        return ast.Assign([node.target], node.value) if node.value else None

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, float):
            return ast.Constant(float(f"{node.value:.4g}"))
        return node


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _measure(tree: ast.Module) -> Iterator[Violation]:
    """Size and depth, without recursion: a deep tree must not hurt the checker."""
    count = 0
    todo: list[tuple[ast.AST, int]] = [(tree, 0)]
    while todo:
        node, depth = todo.pop()
        count += 1
        if depth > MAX_DEPTH:
            yield Violation(getattr(node, "lineno", 0), f"nested deeper than {MAX_DEPTH} levels")
            return
        if count > MAX_NODES:
            yield Violation(0, f"larger than {MAX_NODES} syntax nodes")
            return
        todo += [(child, depth + 1) for child in ast.iter_child_nodes(node)]


def _check_module(tree: ast.Module) -> Iterator[Violation]:
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef) or _is_text(node):
            continue
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if not all(isinstance(target, ast.Name) for target in targets):
                yield Violation(node.lineno, "only names may be assigned at the top level")
            continue
        yield Violation(
            node.lineno, "only imports, constants and functions may stand at the top level of a policy"
        )


def _check_functions(tree: ast.Module) -> Iterator[Violation]:
    defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for name, parameters in PARAMETERS.items():
        function = defined.get(name)
        if function is None:
            yield Violation(0, f"does not define {name}({', '.join(parameters)})")
            continue
        arguments = function.args
        given = tuple(a.arg for a in (*arguments.posonlyargs, *arguments.args))
        extra = arguments.vararg or arguments.kwarg or arguments.kwonlyargs
        if given != parameters or extra:
            yield Violation(function.lineno, f"{name} must take ({', '.join(parameters)})")
        if any(isinstance(n, ast.Yield | ast.YieldFrom) for n in ast.walk(function)):
            yield Violation(function.lineno, f"{name} must return, not yield")


def _check_node(node: ast.AST) -> Iterator[Violation]:
    check = _CHECKS.get(type(node))
    if check is not None:
        yield from check(node)
    elif message := _NO_USE.get(type(node)):
        yield Violation(getattr(node, "lineno", 0), message)


def _check_import(node: ast.Import) -> Iterator[Violation]:
    yield from _check_imports(node.lineno, [alias.name for alias in node.names])


def _check_import_from(node: ast.ImportFrom) -> Iterator[Violation]:
    yield from _check_imports(node.lineno, ["." * node.level + (node.module or "")])
    if any(alias.name == "*" for alias in node.names):
        yield Violation(node.lineno, "import names, not *")
    if any(alias.name.startswith("_") for alias in node.names):
        yield Violation(node.lineno, "private names may not be imported")


def _check_name(node: ast.Name) -> Iterator[Violation]:
    if node.id in FORBIDDEN_NAMES or _is_dunder(node.id):
        yield Violation(node.lineno, f"{node.id} may not be used")


def _check_handler(node: ast.ExceptHandler) -> Iterator[Violation]:
    if node.type is None:
        yield Violation(node.lineno, "a bare except hides what is wrong")


def _check_while(node: ast.While) -> Iterator[Violation]:
    if _is_endless(node):
        yield Violation(node.lineno, "while True without break or return does not end")


def _check_literal(node: ast.Constant) -> Iterator[Violation]:
    if isinstance(node.value, str | bytes) and len(node.value) > MAX_LITERAL_CHARS:
        yield Violation(node.lineno, f"a literal of more than {MAX_LITERAL_CHARS} characters")


def _check_imports(line: int, modules: list[str]) -> Iterator[Violation]:
    for module in modules:
        if module not in ALLOWED_IMPORTS:
            yield Violation(line, f"may not import {module}")


def _check_attribute(node: ast.Attribute) -> Iterator[Violation]:
    if node.attr.startswith("_") and node.attr not in ("_replace", "_asdict", "_fields"):
        yield Violation(node.lineno, f"private attribute {node.attr} may not be used")
    if node.attr in ("format_map", "gi_frame", "f_globals", "tb_frame", "cr_frame", "ag_frame"):
        yield Violation(node.lineno, f"attribute {node.attr} may not be used")
    if not isinstance(node.ctx, ast.Load):
        yield Violation(node.lineno, "attributes may not be assigned: what a policy sees is not its own")


def _check_random(node: ast.Call) -> Iterator[Violation]:
    """Only `random.Random(seed)` is the same in every run."""
    function = node.func
    if not (isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)):
        return
    if function.value.id == "random" and (function.attr != "Random" or not node.args):
        yield Violation(node.lineno, "use random.Random(seed): anything else differs from run to run")


def _check_state(function: ast.FunctionDef, constants: frozenset[str]) -> Iterator[Violation]:
    """What a module-level name holds may not change: that would be state beside the memo."""
    own: frozenset[str] | None = None
    for node in ast.walk(function):
        target: ast.expr | None = None
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            target = node.value
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _MUTATORS
        ):
            target = node.func.value
        if isinstance(target, ast.Name) and target.id in constants:
            own = _own_names(function) if own is None else own
            if target.id not in own:
                yield Violation(target.lineno, f"{target.id} is a constant: state belongs into the memo")


def _module_names(tree: ast.Module) -> frozenset[str]:
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names.update(t.id for t in node.targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return frozenset(names)


def _own_names(function: ast.FunctionDef) -> frozenset[str]:
    stored = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return frozenset(stored | {a.arg for a in ast.walk(function) if isinstance(a, ast.arg)})


def _is_endless(node: ast.While) -> bool:
    if not (isinstance(node.test, ast.Constant) and node.test.value):
        return False
    return not any(
        isinstance(inner, ast.Break | ast.Return | ast.Raise) for s in node.body for inner in ast.walk(s)
    )


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


_CHECKS: dict[type[ast.AST], Callable[[Any], Iterator[Violation]]] = {
    ast.Import: _check_import,
    ast.ImportFrom: _check_import_from,
    ast.Name: _check_name,
    ast.Attribute: _check_attribute,
    ast.ExceptHandler: _check_handler,
    ast.While: _check_while,
    ast.Constant: _check_literal,
    ast.Call: _check_random,
}
_STATE = "state belongs into the memo: no global, no nonlocal"
_PLAIN = "a policy is made of plain functions: no classes, no async"
_NO_USE: dict[type[ast.AST], str] = {
    ast.Global: _STATE,
    ast.Nonlocal: _STATE,
    ast.ClassDef: _PLAIN,
    ast.AsyncFunctionDef: _PLAIN,
    ast.Await: _PLAIN,
    ast.AsyncFor: _PLAIN,
    ast.AsyncWith: _PLAIN,
    ast.With: "with has no use in a policy",
    ast.Delete: "del has no use in a policy",
}
