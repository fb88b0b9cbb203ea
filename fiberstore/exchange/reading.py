"""Files to Arrow batches, as they are: ``validation`` says whether they hold records."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from pydantic import JsonValue

from fiberstore.errors import SerializationError
from fiberstore.exchange.schemas import NULLABLE, TEXT, TIME, VERSION, Kind, schema_of
from fiberstore.exchange.validation import Stamp, check_columns, validated
from fiberstore.exchange.writing import format_of
from fiberstore.models import load_json
from fiberstore.records import check_config_version, check_text, dump_json

_BATCH_ROWS = 8_192
_BLOCK_BYTES = 16 * 2**20  # a row of CSV must fit


def read_records(
    path: str | Path, kind: Kind, stamp: Stamp, *, on_rows: Callable[[int], None] | None = None
) -> Iterator[pa.RecordBatch]:
    """Read a file, or all of a folder in the order of their names, in bounded memory.

    In a folder, names that begin with a dot or an underscore are passed over: those are unfinished files.

    A CSV or JSON Lines file that was cut off between rows, or a CSV file outside quotes, cannot be told from
    a whole one.

    Args:
        path: The file or the folder.
        kind: What it holds.
        stamp: What logs get whose columns for it are left out.
        on_rows: Called with the number of rows of each batch, once the caller asks for the next.

    Returns:
        Batches ready to be stored: checked, ids as 16 bytes, the first of equal keys in each.

    Raises:
        ValueError: A file holds something else; the message names it.
        OSError: A file cannot be read.
    """
    for file in _files(Path(path)):
        for batch, rows in _records_of(file, kind, stamp):
            yield batch
            if on_rows is not None:
                on_rows(rows)


def _records_of(file: Path, kind: Kind, stamp: Stamp) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Give the batches of a file, and how many rows each had."""
    row = 0
    try:
        for batch in _READERS[format_of(file)](file, kind):
            yield validated(batch, kind, stamp, row), batch.num_rows
            row += batch.num_rows
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(f"{file}: {_first_line(error)}") from error  # pyarrow's, of a damaged Parquet file
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"{file}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        format_of(path)
        return [path]
    files = [
        found
        for found in sorted(path.rglob("*"))
        if found.suffix.lower() in _READERS
        and not any(part.startswith((".", "_")) for part in found.relative_to(path).parts)
        and found.is_file()
    ]
    if not files:
        raise ValueError(f"{path} holds no .parquet, .csv or .jsonl file")
    return files


def _parquet(path: Path, kind: Kind) -> Iterator[pa.RecordBatch]:
    with path.open("rb") as opened, pq.ParquetFile(opened) as file:
        check_columns(file.schema_arrow.names, kind)
        if file.num_row_groups:  # pyarrow 18 cannot read none
            yield from file.iter_batches(_BATCH_ROWS, use_threads=False)


def _csv(path: Path, kind: Kind) -> Iterator[pa.RecordBatch]:
    """Read all columns as text; what has quotes is never null."""
    _check_quotes(path)
    as_text = {field.name: TEXT for field in schema_of(kind)}
    with path.open("rb") as opened:
        reader = pa_csv.open_csv(
            opened,
            read_options=pa_csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                column_types=as_text,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        with reader:
            check_columns(reader.schema.names, kind)
            yield from reader


def _check_quotes(path: Path) -> None:
    """Refuse a file that ends inside quotes, which pyarrow closes: in a whole one they are even in number."""
    with path.open("rb") as file:
        quotes = sum(block.count(b'"') for block in iter(partial(file.read, _BLOCK_BYTES), b""))
    if quotes % 2:
        raise ValueError("is cut off inside quotes, or has a quote in text without quotes around it")


def _json_lines(path: Path, kind: Kind) -> Iterator[pa.RecordBatch]:
    names: list[str] = []
    row = 0
    with path.open("rb") as file:
        while lines := file.readlines(_BLOCK_BYTES):
            records = [_record(line, number) for number, line in enumerate(lines, row + 1)]
            if not row:
                names = list(records[0])
                check_columns(names, kind)
            for number, record in enumerate(records, row + 1):
                if record.keys() != set(names):
                    raise ValueError(
                        f"row {number}: has {', '.join(record)}, and the first {', '.join(names)}"
                    )
            columns = {
                name: _json_column(
                    name, schema_of(kind).field(name).type, [record[name] for record in records], row
                )
                for name in names
            }
            yield pa.RecordBatch.from_pydict(columns)
            row += len(lines)


def _record(line: bytes, number: int) -> dict[str, JsonValue]:
    try:
        record = load_json(line.decode())
    except (SerializationError, UnicodeDecodeError) as error:
        raise ValueError(f"row {number}: is not JSON: {error.__cause__ or error}") from error
    if not isinstance(record, dict):
        raise ValueError(  # noqa: TRY004  # of a value in a file
            f"row {number}: must be a JSON object, got {record!r:.100}"
        )
    return record


def _json_column(name: str, type_: pa.DataType, values: list[JsonValue], row: int) -> pa.Array:
    """Return values as Arrow has them; a time stays the text that it is in JSON."""
    check = _CHECKS[type_]
    texts: list[JsonValue] = []
    for number, value in enumerate(values, row + 1):
        try:
            texts.append(dump_json(value) if name == NULLABLE else None if value is None else check(value))
        except (TypeError, ValueError) as error:
            raise ValueError(f"row {number}: {name}: {error}") from error
    return pa.array(texts, TEXT if type_ == TIME else type_)


def _boolean(value: JsonValue) -> JsonValue:
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, got {value!r:.100}")
    return value


def _version(value: JsonValue) -> JsonValue:
    check_config_version(value)  # type: ignore[arg-type]  # that is what it checks
    return value


_CHECKS: dict[pa.DataType, Callable[[Any], JsonValue]] = {
    TEXT: check_text,
    TIME: check_text,
    VERSION: _version,
    pa.bool_(): _boolean,
}


_READERS: dict[str, Callable[[Path, Kind], Iterator[pa.RecordBatch]]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".jsonl": _json_lines,
}
