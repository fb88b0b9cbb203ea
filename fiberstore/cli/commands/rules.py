"""``rules``: a first rules file, made from log files."""

from pathlib import Path
from typing import Annotated

import typer

from fiberstore.cli.app import app, print_note
from fiberstore.cli.console import print_text
from fiberstore.cli.tables import counted
from fiberstore.ingest.first_rules import find_first_rules, write_first_rules
from fiberstore.ingest.rules import RulesError

rules_app = typer.Typer(help="Rules files, which say how log files are read.", no_args_is_help=True)
app.add_typer(rules_app, name="rules")


@rules_app.command("init", epilog="Example: fiberstore rules init app.log --output rules.toml")
def init(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Log files: files, globs, directories, or - for input."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The new rules file, which must not be there; else stdout."),
    ] = None,
) -> None:
    """Write first rules for log files: stamps of a well-known form, and what may be keys as comments.

    Files whose names begin equally, up to the first dot, are one source.
    """
    sources = find_first_rules(files)
    text = write_first_rules(sources, None if output is None else output.parent)
    if output is None:
        print_text(text)
    else:
        try:
            with output.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise RulesError(f"{output} exists; give another --output, or remove it") from None
    for source in sources:
        share = f"stamps on {source.stamped:,} of {counted(source.lines, 'lines')}"
        keys = counted(len(source.keys), "candidate keys")
        print_note(f"{source.name}: {source.stamp.name}, {share}; {keys}")
    if output is not None:
        print_note(f"next: fiberstore ingest --check --rules {output}")
