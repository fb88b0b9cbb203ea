"""A generator of batches as an Arrow stream."""

from collections.abc import Iterator
from itertools import chain

import pyarrow as pa

from fiberstore.errors import StorageError


def closing_reader(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatchReader:
    """Return a reader of the batches, which ends their generator when it is read out, closed or dropped.

    The first batch is taken at once, so that an error before it is raised here. One that comes later is
    raised as pyarrow's, with its message.
    """
    first = next(batches, None)
    rest = _as_arrow_errors(batches)
    inner = pa.RecordBatchReader.from_batches(schema, rest if first is None else chain([first], rest))
    del batches, rest
    # A reader of Python's batches is closed without effect; one of a C stream lets go of it.
    return pa.RecordBatchReader.from_stream(inner)


def _as_arrow_errors(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    try:
        yield from batches
    except StorageError as error:
        raise pa.ArrowInvalid(str(error)) from error
