"""Files to Arrow batches, as they are: ``validation`` says whether they hold records."""

import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from pydantic import JsonValue

from fiberstore.checks import check_config_version, check_text
from fiberstore.errors import SerializationError
from fiberstore.exchange.schemas import IDS, JSON_COLUMN, NULLABLE, TEXT, TIME, VERSION, Kind, schema_of
from fiberstore.exchange.validation import Stamp, check_columns, validated
from fiberstore.exchange.writing import format_of
from fiberstore.json_text import dump_json, load_json

_BATCH_ROWS = 8_192
_BLOCK_BYTES = 16 * 2**20  # a row of CSV must fit
_QUOTES_BLOCK_BYTES = 2**20
_SEPARATORS = b",\r\n"
_LINE_BREAK = re.compile(rb"\r\n?|\n")
_OTHER_SEPARATORS = re.compile(rb"[;\t|]")


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
    """Yield the batches of a file, and the number of rows of each."""
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
    """Read all columns as text. Null is what is empty without quotes, in a column that may be null."""
    _check_header(path)
    _check_quotes(path)
    schema = schema_of(kind)
    texts = [field.name for field in schema if field.type == TEXT and field.name not in IDS | NULLABLE]
    misfits: list[pa_csv.InvalidRow] = []

    def note(row: pa_csv.InvalidRow) -> str:
        misfits.append(row)
        return "error"

    with path.open("rb") as opened:
        try:
            reader = pa_csv.open_csv(
                opened,
                read_options=pa_csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
                parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
                convert_options=pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(schema.names, TEXT),
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            )
            with reader:
                check_columns(reader.schema.names, kind)
                for batch in reader:
                    yield _with_empty_texts(batch, texts)
        except pa.ArrowInvalid:
            if not misfits:
                raise
            row = misfits[0]  # the header is row 1 to pyarrow
            raise ValueError(
                f"row {row.number - 1}: has {row.actual_columns} fields, the header {row.expected_columns}"
            ) from None


def _with_empty_texts(batch: pa.RecordBatch, names: Collection[str]) -> pa.RecordBatch:
    columns = [
        pc.fill_null(values, "") if name in names else values
        for name, values in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _check_header(path: Path) -> None:
    """Refuse what Excel writes besides CSV as of RFC 4180: UTF-16, and other separators than commas."""
    with path.open("rb") as file:
        header = file.readline(_QUOTES_BLOCK_BYTES)
    if header.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise ValueError("is UTF-16; write it as UTF-8")
    if b"," not in header and (found := _OTHER_SEPARATORS.search(header)):
        raise ValueError(f"has fields separated by {found[0].decode()!r}; write it with commas")


def _check_quotes(path: Path) -> None:
    """Refuse quotes and line breaks that pyarrow would read as another text than was meant.

    A quote encloses a field, or is doubled inside one. Line breaks outside quotes are of one kind: of two,
    one is a text's, such as the carriage return that pandas writes without quotes.
    """
    line, opened_in, in_quotes = 1, 0, False
    line_break: bytes | None = None
    before = b","  # stands for the text outside quotes that the block before has ended in
    for block in _blocks(path):
        pieces = (before + block).split(b'"')
        outside = pieces[in_quotes::2]  # empty between doubled quotes
        ends_in_quotes = (len(pieces) + in_quotes) % 2 == 0
        end = b"" if ends_in_quotes else outside.pop()
        outside.append(end and end + b",")
        if line_break is None:
            line_break = next((found[0] for text in outside if (found := _LINE_BREAK.search(text))), None)
        if any(_fault(text, line_break) for text in set(outside)):
            number, (at, what) = next(
                (number, fault) for number, text in enumerate(outside) if (fault := _fault(text, line_break))
            )
            offset = sum(len(piece) + 1 for piece in pieces[: 2 * number + in_quotes]) + at - len(before)
            raise ValueError(f"line {line + _line_breaks(block[:offset])}: {what}")
        if ends_in_quotes and len(pieces) > 1:
            opened_in = line + _line_breaks(block[: block.rindex(b'"')])
        line += _line_breaks(block)
        in_quotes = ends_in_quotes
        before = end and (b"," if end[-1] in _SEPARATORS else b",x")
    if in_quotes:
        raise ValueError(f"is cut off inside quotes that begin in line {opened_in}")


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield a file without its byte-order mark in blocks that part no line break."""
    with path.open("rb") as file:
        if file.read(len(BOM_UTF8)) != BOM_UTF8:
            file.seek(0)
        while block := file.read(_QUOTES_BLOCK_BYTES):
            while block.endswith(b"\r") and (more := file.read(1)):
                block += more
            yield block


def _fault(outside: bytes, line_break: bytes | None) -> tuple[int, str] | None:
    """Return the offset of a fault in the text between two quoted fields, and what it is."""
    if not outside:
        return None
    if outside[0] not in _SEPARATORS:
        return 0, "has text after a closing quote; double the quotes inside a quoted field"
    if outside[-1] not in _SEPARATORS:
        return len(outside), "has a quote in a field without quotes around it; add them, and double it"
    for found in _LINE_BREAK.finditer(outside):
        if found[0] != line_break:
            ends, others = (text.decode() for text in (found[0], line_break or b""))
            return (
                found.start(),
                f"ends in {ends!r}, others in {others!r}; a line break in a text needs quotes",
            )
    return None


def _line_breaks(text: bytes) -> int:
    return text.count(b"\n") + text.count(b"\r") - text.count(b"\r\n")


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
            texts.append(dump_json(value) if name == JSON_COLUMN else None if value is None else check(value))
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
