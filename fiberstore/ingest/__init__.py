"""Log files in, fibers out: ``rules`` says what is read, ``reader`` reads it, ``correlate`` joins it.

``pipeline`` puts the three together and writes to a store; ``reprocess`` joins what is stored by other rules.
"""

from fiberstore.ingest.correlator import CorrelationCounts, Correlator
from fiberstore.ingest.pipeline import DEFAULT_BATCH_ROWS, IngestReport, ingest
from fiberstore.ingest.reader import IngestError, read_source, read_sources
from fiberstore.ingest.reprocess import ReprocessReport, reprocess
from fiberstore.ingest.rules import Rules, RulesError, load_rules, parse_rules

__all__ = [
    "DEFAULT_BATCH_ROWS",
    "CorrelationCounts",
    "Correlator",
    "IngestError",
    "IngestReport",
    "ReprocessReport",
    "Rules",
    "RulesError",
    "ingest",
    "load_rules",
    "parse_rules",
    "read_source",
    "read_sources",
    "reprocess",
]
