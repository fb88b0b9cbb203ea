"""Write the stubs, by which type checkers and editors know the public names and the derived coroutines.

    python tools/write_stubs.py           write them
    python tools/write_stubs.py --check   fail if one is not as it would be written

The stub of ``fiberstore`` imports its public names. A stub of ``fiberstore.aio`` has the classes of its
module, without bodies, and what ``fiberstore.aio.face`` adds to them: each signature from the source of the
contract, with the contract's docstring.
"""

import argparse
import ast
import builtins
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import fiberstore

MODULES = ("fiberstore.aio.queries", "fiberstore.aio.storage")
HEADING = "# Written by tools/write_stubs.py; not to be edited.\n"

Definition = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> int:
    """Write the stubs, or check them.

    Returns:
        The exit status: 1 if a stub is out of date with ``--check``.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only tell which stubs are out of date")
    is_check = parser.parse_args().check
    texts = {name: _Stub(import_module(name)).text() for name in MODULES}
    stale = []
    for name, written in {"fiberstore": _public_names(), **texts}.items():
        path = Path(inspect.getfile(import_module(name))).with_suffix(".pyi")
        text = _formatted(written, path)
        if not path.exists() or path.read_text() != text:
            stale.append(path.name)
            if not is_check:
                path.write_text(text)
    if is_check and stale:
        print(f"out of date: {', '.join(stale)}; run python {sys.argv[0]}")
        return 1
    return 0


def _public_names() -> str:
    homes = {name: getattr(fiberstore, name).__module__ for name in fiberstore.__all__}
    imports = [f"from {module} import {name} as {name}\n" for name, module in homes.items()]
    modules = ["from fiberstore import doctor as doctor\n", "from fiberstore import errors as errors\n"]
    return f"{HEADING}\n{''.join(modules + imports)}\n__version__: str\n\n__all__ = {fiberstore.__all__!r}\n"


class _Stub:
    """The stub of one module."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._imports: dict[str, str] = {}

    def text(self) -> str:
        """Return the text, which a formatter has still to arrange."""
        written = ast.parse(inspect.getsource(self._module)).body
        classes = [self._declare_class(node) for node in written if isinstance(node, ast.ClassDef)]
        docstring = inspect.getdoc(self._module)
        return "\n".join([HEADING, f'"""{docstring}"""', *self._imports.values(), *map(ast.unparse, classes)])

    def _declare_class(self, node: ast.ClassDef) -> ast.ClassDef:
        cls = getattr(self._module, node.name)
        body: list[ast.stmt] = [_docstring(cls)]
        by_hand = set()
        for part in node.body:
            if isinstance(part, ast.AnnAssign):
                part.value = None
                self._import(part.annotation, self._module)
                body.append(part)
                by_hand.add(ast.unparse(part.target))
            elif isinstance(part, Definition):
                by_hand.add(part.name)
                if not part.name.startswith("_") or part.name.endswith("__"):
                    body.append(self._declare(part, self._module, vars(cls)[part.name]))
        derived = [member for name, member in vars(cls).items() if name[0] != "_" and name not in by_hand]
        for base in node.bases:
            self._import(base, self._module)
        node.keywords, node.body = [], [*body, *map(self._derive, derived)]
        return node

    def _derive(self, member: Callable[..., Any] | property) -> Definition:
        """Declare what ``fiberstore.aio.face`` has made of a method or a property of the contract."""
        if isinstance(member, property):
            assert member.fget is not None
            face = inspect.signature(member.fget).return_annotation
            node = _definition(f"@property\ndef {member.fget.__name__}(self) -> {face.__name__}: ...")
            return self._declare(node, sys.modules[face.__module__], member)
        source = inspect.unwrap(member)
        node = _definition(inspect.getsource(source))
        node.decorator_list = []
        if inspect.iscoroutinefunction(member):
            node = ast.AsyncFunctionDef(**vars(node))
        return self._declare(node, sys.modules[source.__module__], member)

    def _declare(self, node: Definition, module: ModuleType, member: object) -> Definition:
        """Return a definition in a module's source without its body, but with the docstring of the member."""
        if inspect.isasyncgenfunction(getattr(member, "__wrapped__", member)):
            # Without the ``yield``, an asynchronous generator would be taken for a coroutine.
            node = ast.FunctionDef(**vars(node))
        node.body = [_docstring(member)]
        for part in ast.walk(node):
            if isinstance(part, ast.arg) and part.annotation is not None:
                self._import(part.annotation, module)
        if node.returns is not None:
            self._import(node.returns, module)
        for value in (*node.args.defaults, *node.args.kw_defaults, *node.decorator_list):
            if isinstance(value, ast.Name):
                self._import(value, module)
        return node

    def _import(self, expression: ast.expr, module: ModuleType) -> None:
        """Note from where the names of an expression in a module's source are imported."""
        for name in _names(expression):
            line = _imports_of(module).get(name, f"from {module.__name__} import {name}")
            if hasattr(builtins, name) or line.startswith(f"from {self._module.__name__} "):
                continue
            if self._imports.setdefault(name, line) != line:
                raise ValueError(f"{name} has two meanings: {line}, and {self._imports[name]}")


def _definition(source: str) -> Definition:
    (node,) = ast.parse(dedent(source)).body
    assert isinstance(node, Definition)
    return node


def _docstring(member: object) -> ast.Expr:
    docstring = inspect.getdoc(member)
    if docstring is None or getattr(member, "__name__", "").startswith("__"):
        return ast.Expr(ast.Constant(...))
    return ast.Expr(ast.Constant(docstring + "\n" if "\n" in docstring else docstring))


def _names(expression: ast.expr) -> Iterator[str]:
    """Return the names in an expression, also those of an annotation in quotes."""
    if isinstance(expression, ast.Name):
        yield expression.id
    elif isinstance(expression, ast.Subscript) and ast.unparse(expression.value) == "Literal":
        yield "Literal"
    elif isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        yield from _names(ast.parse(expression.value, mode="eval").body)
    else:
        for part in ast.iter_child_nodes(expression):
            if isinstance(part, ast.expr):
                yield from _names(part)


@cache
def _imports_of(module: ModuleType) -> dict[str, str]:
    """Return the import statement of each name that a module imports, at its top or for type checkers."""
    found = {}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                found[alias.asname or alias.name] = f"{origin}import {ast.unparse(alias)}"
    return found


def _formatted(text: str, path: Path) -> str:
    for command in (["check", "--quiet", "--select=I,UP", "--fix"], ["format", "--quiet"]):
        run = [sys.executable, "-m", "ruff", *command, f"--stdin-filename={path}", "-"]
        text = subprocess.run(run, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    sys.exit(main())
