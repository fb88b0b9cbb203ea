"""Arrow batches to files, which have their names once they are complete."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from fiberstore.atomic_files import new_file, new_folder
from fiberstore.contract.queries import Partition
from fiberstore.exchange.schemas import JSON_COLUMN, NULLABLE, TEXT, TIME, TIMES, Kind, schema_of

SortKey: TypeAlias = tuple[str, Literal["ascending", "descending"]]
Write: TypeAlias = Callable[[pa.RecordBatch], object]
_Writer: TypeAlias = Callable[[BinaryIO], AbstractContextManager[Write]]

_PARTITIONS = {"month": 7, "day": 10, "hour": 13}  # characters of an ISO 8601 time
_ROW_GROUP_ROWS = 100_000
_ROW_GROUP_BYTES = 64 * 2**20
_CONTROLS = {chr(code): f"\\u{code:04x}" for code in range(32)}


def check_export(path: str | Path, kind: Kind, partition_by: Partition | None) -> None:
    """Raise ``ValueError`` unless records of a kind can be written to such a path in such parts."""
    format_of(Path(path))
    if partition_by is None:
        return
    if partition_by not in _PARTITIONS:
        raise ValueError(f"partition_by must be one of {', '.join(_PARTITIONS)}, got {partition_by!r}")
    if kind not in TIMES:
        raise ValueError(f"{kind.__name__}s have no time to be split by; export them without partition_by")


def format_of(path: Path) -> str:
    """Return the suffix of a file, if it is one that can be read and written."""
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        raise ValueError(f"{path} must end in .parquet, .csv or .jsonl")
    return suffix


def write_records(
    batches: Iterable[pa.RecordBatch],
    kind: Kind,
    path: str | Path,
    *,
    sorted_by: Sequence[SortKey] = (),
    partition_by: Partition | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> int:
    """Write batches in the schema of their kind; see ``Query.export``.

    With ``partition_by`` they must be ordered by time, so that a part is complete when another begins.
    Where there are none, the folder holds one empty ``part-0``, which can be read again.

    Args:
        batches: The rows.
        kind: What they are.
        path: The file, or the folder of parts.
        sorted_by: What the rows are sorted by; Parquet files say so in their metadata.
        partition_by: The unit of time that has a part.
        on_rows: Called with the number of rows of each batch.

    Returns:
        How many rows there were.
    """
    check_export(path, kind, partition_by)
    path = Path(path)
    rows = 0
    writer = partial(_WRITERS[format_of(path)], kind, sorted_by)
    with _writing(path, kind, writer, partition_by) as write:
        for batch in batches:
            write(batch)
            rows += batch.num_rows
            if on_rows is not None:
                on_rows(batch.num_rows)
    return rows


@contextmanager
def _writing(path: Path, kind: Kind, writer: _Writer, partition_by: Partition | None) -> Iterator[Write]:
    if partition_by is None:
        with new_file(path) as unfinished, unfinished.open("wb") as file, writer(file) as write:
            yield write
        return
    with new_folder(path) as folder:
        parts = _Parts(folder, f"part-0{path.suffix}", writer, TIMES[kind], partition_by)
        try:
            yield parts.write
        finally:
            parts.close()
        if not any(folder.iterdir()):
            with _open_part(folder / f"part-0{path.suffix}", writer):
                pass


class _Parts:
    """The files of a folder, by time; one is open at a time."""

    def __init__(self, folder: Path, file_name: str, writer: _Writer, time: str, unit: Partition) -> None:
        self._folder, self._file_name, self._writer = folder, file_name, writer
        self._time, self._unit = time, unit
        self._name: str | None = None
        self._opened = ExitStack()

    def write(self, batch: pa.RecordBatch) -> None:
        """Write each run of rows of one part to its file."""
        times = batch.column(self._time).cast(pa.timestamp("us"))
        runs = pc.run_end_encode(pc.floor_temporal(times, unit=self._unit), run_end_type=pa.int64())
        begin = 0
        for end, value in zip(runs.run_ends.to_pylist(), runs.values.to_pylist(), strict=True):
            name = value.isoformat()[: _PARTITIONS[self._unit]]
            if name != self._name:
                self._begin(name)
            self._write(batch.slice(begin, end - begin))
            begin = end

    def _begin(self, name: str) -> None:
        self.close()
        folder = self._folder / f"{self._unit}={name}"
        folder.mkdir()
        part = _open_part(folder / self._file_name, self._writer)
        self._name, self._write = name, self._opened.enter_context(part)

    def close(self) -> None:
        """Complete the file that is open."""
        self._opened.close()


@contextmanager
def _open_part(path: Path, writer: _Writer) -> Iterator[Write]:
    with path.open("xb") as file:
        with writer(file) as write:
            yield write
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _parquet(kind: Kind, sorted_by: Sequence[SortKey], file: BinaryIO) -> Iterator[Write]:
    """Write row groups of a size that is common, whatever the size of the batches."""
    schema = schema_of(kind)
    waiting: list[pa.RecordBatch] = []

    def flush() -> None:
        if waiting:
            table = pa.Table.from_batches(waiting)
            writer.write_table(table, row_group_size=table.num_rows)
            waiting.clear()

    def write(batch: pa.RecordBatch) -> None:
        waiting.append(batch)
        if (
            sum(batch.num_rows for batch in waiting) >= _ROW_GROUP_ROWS
            or sum(batch.nbytes for batch in waiting) >= _ROW_GROUP_BYTES
        ):
            flush()

    sorting = pq.SortingColumn.from_ordering(schema, sorted_by)
    with pq.ParquetWriter(file, schema, compression="zstd", sorting_columns=sorting) as writer:
        yield write
        flush()


@contextmanager
def _csv(kind: Kind, sorted_by: Sequence[SortKey], file: BinaryIO) -> Iterator[Write]:
    """Write text in quotes, so that an empty one is not null, which has none."""
    del sorted_by
    schema = pa.schema(
        [(field.name, TEXT if field.type == TIME else field.type) for field in schema_of(kind)]
    )

    def write(batch: pa.RecordBatch) -> None:
        columns = [_iso(values) if values.type == TIME else values for values in batch.columns]
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))

    with pa_csv.CSVWriter(file, schema) as writer:
        yield write


@contextmanager
def _json_lines(kind: Kind, sorted_by: Sequence[SortKey], file: BinaryIO) -> Iterator[Write]:
    del kind, sorted_by

    def write(batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        pieces: list[pa.Scalar | pa.Array] = []
        for number, (name, values) in enumerate(zip(batch.schema.names, batch.columns, strict=True)):
            begin = pa.scalar(f'{"," if number else "{"}"{name}":', TEXT)
            pieces += [begin, _json_text(name, values)]
        lines = pc.binary_join_element_wise(*pieces, pa.scalar("}\n", TEXT), pa.scalar("", TEXT))
        file.write(lines.buffers()[2])  # the texts of an array lie there one after another

    yield write


_WRITERS: dict[str, Callable[[Kind, Sequence[SortKey], BinaryIO], AbstractContextManager[Write]]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".jsonl": _json_lines,
}


def _iso(times: pa.Array) -> pa.Array:
    """Return times as ISO 8601 with a Z."""
    return pc.replace_substring(times.cast(TEXT), " ", "T", max_replacements=1)


def _json_text(name: str, values: pa.Array) -> pa.Array:
    if name == JSON_COLUMN:  # JSON already; a line break in it can only be between its tokens
        texts = pc.replace_substring_regex(values, r"[\r\n]", " ")
    elif values.type in (pa.bool_(), pa.uint64()):
        texts = values.cast(TEXT)
    else:
        quote, plain = pa.scalar('"', TEXT), _iso(values) if values.type == TIME else _escaped(values)
        texts = pc.binary_join_element_wise(quote, plain, quote, pa.scalar("", TEXT))
    return pc.fill_null(texts, "null") if name in NULLABLE else texts


def _escaped(texts: pa.Array) -> pa.Array:
    """Escape what JSON text must not hold as it is, the backslash first."""
    for character in ("\\", '"'):
        texts = pc.replace_substring(texts, character, f"\\{character}")
    if pc.any(pc.match_substring_regex(texts, r"[\x00-\x1f]")).as_py():
        for character, escape in _CONTROLS.items():
            texts = pc.replace_substring(texts, character, escape)
    return texts
