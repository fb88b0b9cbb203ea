"""The application, to which a command adds itself when it is asked for, and its handling of errors."""

import errno
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from importlib import import_module
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

import fiberstore
from fiberstore.cli import INTERRUPTED
from fiberstore.cli.console import print_line
from fiberstore.cli.index import COMMANDS
from fiberstore.cli.times import Zone
from fiberstore.errors import StorageError
from fiberstore.escaping import escape_controls
from fiberstore.sql.translate import translate_errors

Function = TypeVar("Function", bound=Callable[..., None])

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def with_whole_paragraphs(command: Any) -> Any:  # noqa: ANN401
    """Let the help of a command, if there is one, be broken by the width of the terminal alone."""
    if command is not None and command.help is not None:
        paragraphs = inspect.cleandoc(command.help).split("\n\n")
        command.help = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)
    return command


class _Group(TyperGroup):
    """Group of all commands. Escapes control characters in messages of usage, and reports Ctrl-C."""

    def __init__(self, *, commands: Any, **options: Any) -> None:  # noqa: ANN401  # as typer has them
        """Take the commands that are imported already; the others have their lines in their place."""
        lines = {name: TyperCommand(name, help=line) for name, (_, line) in COMMANDS.items()}
        super().__init__(commands=lines | commands, **options)

    def make_context(self, *args: Any, **extra: Any) -> Any:  # noqa: ANN401  # as typer has it
        """Parse the arguments of the program."""
        with _told():
            return super().make_context(*args, **extra)

    def invoke(self, *args: Any) -> Any:  # noqa: ANN401
        """Parse the arguments of the command, and run it."""
        with _told():
            return super().invoke(*args)

    def resolve_command(self, *args: Any) -> Any:  # noqa: ANN401
        """Import the command that runs; lists and a shell that completes its name read the line instead."""
        name, command, rest = super().resolve_command(*args)
        return name, _imported(name) if name in COMMANDS else command, rest


@cache
def _imported(name: str) -> Any:  # noqa: ANN401
    """Import a command; its help has one line for each paragraph, for the terminal to break."""
    import_module(f"fiberstore.cli.commands.{COMMANDS[name][0]}")
    return with_whole_paragraphs(get_group(app).commands[name])


class _Notes(logging.Handler):
    """Prints what the library warns of as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        print_note(record.getMessage())


@contextmanager
def _noting_warnings() -> Iterator[None]:
    """Print what queries warn of."""
    logger, notes = logging.getLogger("fiberstore.repositories"), _Notes(logging.WARNING)
    logger.addHandler(notes)
    try:
        yield
    finally:
        logger.removeHandler(notes)


class Commands(typer.Typer):
    """A group of commands. Those that print results, as ``--json`` says, take ``--tz`` too."""

    def command(self, *args: Any, **options: Any) -> Callable[[Function], Function]:  # noqa: ANN401
        """Return a decorator that registers a command."""
        register = super().command(*args, **options)

        def add(function: Function) -> Function:
            parameters = inspect.signature(function).parameters
            register(_in_zone(function, [*parameters.values()]) if "as_json" in parameters else function)
            return function

        return add


def _in_zone(function: Callable[..., None], parameters: list[inspect.Parameter]) -> Callable[..., None]:
    @wraps(function)
    def run(tz: str | None, **values: Any) -> None:  # noqa: ANN401  # as typer gives them
        del tz  # its callback has set the zone
        function(**values)

    zone = inspect.Parameter("tz", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Zone)
    return with_parameters(run, [*parameters, zone])


def with_parameters(run: Function, parameters: Iterable[inspect.Parameter]) -> Function:
    """Let typer give a function values for these parameters, by their names."""
    by_name = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = inspect.Signature(by_name)  # type: ignore[attr-defined]
    return run


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print_note("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:  # `| head` has read what it wanted
        raise typer.Exit from None
    except Exception as error:
        if isinstance(message := getattr(error, "message", None), str):  # as typer's own errors have it
            error.message = escape_controls(message)  # type: ignore[attr-defined]
        raise


@contextmanager
def telling_if_interrupted(left: Callable[[], str]) -> Iterator[None]:
    """Let Ctrl-C end the command with a note of what is left by then."""
    try:
        yield
    except KeyboardInterrupt:
        print_note(f"interrupted; {left()}")
        raise typer.Exit(INTERRUPTED) from None


app = Commands(
    cls=_Group,
    help="Store logs and the fibers that join them: one request, one login, one job, seen across all files.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="On a terminal, results are tables that fit it; in a pipe, they are tab-separated and whole.\n\n"
    "Exit codes: 0 done, 1 the store or the input failed, 2 wrong usage, 130 interrupted (Ctrl-C). Nothing "
    "found is 0 too.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"fiberstore {fiberstore.__version__}")
        raise typer.Exit


@app.callback()
def options(
    print_version: Annotated[  # its callback prints it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def run(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit; for ``main``."""
    if sys.stdout is None:  # the file of a store might get its descriptor, and what is printed into it
        print_note("standard output is closed; give it a file, such as /dev/null")
        sys.exit(1)
    try:
        try:
            with translate_errors(), _noting_warnings():
                _command()(args, prog_name="fiberstore")
        finally:
            _flush()
    except (StorageError, ValueError, OSError) as error:
        for line in _message(error).split("\n"):
            print_note(line)
    sys.exit(1)


@cache
def _command() -> Any:  # noqa: ANN401  # typer does not export the class
    """Build the command line, once for all its uses in a process."""
    return get_command(app)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is None and error.errno in _FULL:
        return f"standard output cannot be written: {error.strerror}"  # errors of other files name them
    return str(error)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        if not isinstance(error, BrokenPipeError):
            raise


def print_note(line: str) -> None:
    """Print a line on stderr."""
    print_line(f"fiberstore: {line}", err=True)
