"""Files of records: Arrow batches to Parquet, CSV and JSON Lines, and back. It knows no database."""

from fiberstore.exchange.reading import read_records
from fiberstore.exchange.schemas import schema_of
from fiberstore.exchange.streams import closing_reader
from fiberstore.exchange.validation import Stamp
from fiberstore.exchange.writing import write_records

__all__ = ["Stamp", "closing_reader", "read_records", "schema_of", "write_records"]
