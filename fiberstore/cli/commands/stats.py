"""``stats``: the content of a store in numbers."""

from fiberstore.cli import lookup
from fiberstore.cli.app import app
from fiberstore.cli.options import Db, Json
from fiberstore.cli.render import print_statistics, shape_of_output
from fiberstore.cli.stores import open_to_read


@app.command(epilog="Example: fiberstore stats --db store.duckdb")
def stats(db: Db, as_json: Json = False) -> None:
    """Print the content of a store: rows, times, sources, types of fibers, config versions."""
    with open_to_read(db) as storage:
        found = lookup.collect_statistics(storage)
    print_statistics(found, shape_of_output(as_json=as_json))
