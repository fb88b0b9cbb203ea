"""``checkpoint``: named positions of an application, such as the number of lines read."""

import shlex
from dataclasses import asdict
from typing import Annotated

import typer

from fiberstore.cli.app import Commands, app, print_note
from fiberstore.cli.changing import db_option, open_to_change
from fiberstore.cli.console import print_json, print_text
from fiberstore.cli.groups import ListsByDefault
from fiberstore.cli.lookup import has_lifecycle
from fiberstore.cli.options import Db, Json
from fiberstore.cli.render import print_checkpoints, shape_of_output
from fiberstore.cli.stores import open_to_read
from fiberstore.errors import StorageError

checkpoint_app = Commands(
    cls=ListsByDefault,
    help="Named positions, such as the last line that a program has read; without a command, list them.",
    epilog="Example: fiberstore checkpoint --db store.duckdb",
)
app.add_typer(checkpoint_app, name="checkpoint")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Its name.")]


@checkpoint_app.command("list", epilog="Example: fiberstore checkpoint list --db store.duckdb")
def list_checkpoints(db: Db, as_json: Json = False) -> None:
    """Print the checkpoints, by name."""
    with open_to_read(db) as storage:
        found = storage.checkpoints.all() if has_lifecycle(storage) else []
    print_checkpoints(found, shape_of_output(as_json=as_json))


@checkpoint_app.command("get", epilog="Example: fiberstore checkpoint get mail-import --db store.duckdb")
def get(name: Name, db: Db, as_json: Json = False) -> None:
    """Print the value of a checkpoint; in a pipe, exactly as it was set."""
    with open_to_read(db) as storage:
        found = storage.checkpoints.get(name) if has_lifecycle(storage) else None
    if found is None:
        raise StorageError(f"no checkpoint has the name {name!r}; fiberstore checkpoint lists them")
    if as_json:
        print_json(asdict(found))
    else:
        print_text(f"{found.value}\n")


@checkpoint_app.command(
    "set", epilog="Example: fiberstore checkpoint set mail-import 4711 --expect 4700 --db store.duckdb"
)
def set_(
    name: Name,
    value: Annotated[
        str, typer.Argument(metavar="VALUE", help="Its new value: any text; after -- if it begins with -.")
    ],
    *,
    db: Db,
    expect: Annotated[
        str | None, typer.Option(metavar="VALUE", help="Only if it has this value now; else exit with 1.")
    ] = None,
    expect_none: Annotated[
        bool, typer.Option("--expect-none", help="Only if there is none of that name; else exit with 1.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Set the value of a checkpoint."""
    if expect is not None and expect_none:
        raise typer.BadParameter("contradicts --expect; leave one of them out", param_hint="'--expect-none'")
    with open_to_change(db) as storage:
        if expect is None and not expect_none:
            storage.checkpoints.set(name, value)
        else:
            storage.checkpoints.compare_and_set(name, expect, value)
    if as_json:
        print_json({"name": name, "value": value})
    else:
        print_text(f"{name}: {value}\n")


@checkpoint_app.command(
    "delete", epilog="Example: fiberstore checkpoint delete mail-import --db store.duckdb"
)
def delete(name: Name, db: Db, as_json: Json = False) -> None:
    """Delete a checkpoint and print its last value."""
    with open_to_change(db) as storage:
        found = storage.checkpoints.get(name)
        deleted = storage.checkpoints.delete(name)
    if as_json:
        print_json({"deleted": deleted, "checkpoint": None if found is None else asdict(found)})
    elif found is None:
        print_text(f"nothing deleted; no checkpoint has the name {name!r}\n")
    else:
        print_text(f"{name} deleted\n")
        again = f"checkpoint set {db_option(db)} -- {shlex.join([name, found.value])}"
        print_note(f"fiberstore {again} sets it again")
