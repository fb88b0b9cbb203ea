"""structlog over ``fiberstore.logging.Handler``."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from fiberstore import DuckDBStorage
from fiberstore.logging import Handler


@pytest.fixture
def handler(storage: DuckDBStorage) -> Iterator[Handler]:
    handler = Handler(storage)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    handler.close()
    structlog.reset_defaults()


def test_structlog_events_are_stored_through_logging(storage: DuckDBStorage, handler: Handler) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    with structlog.contextvars.bound_contextvars(request="r-17"):
        structlog.get_logger("shop.cart").warning("card declined", amount=12, odd="\0\ud800")
    handler.flush()
    row = storage.logs.page().items[0]
    assert row.source_id == "shop.cart"
    assert json.loads(row.raw_text) == {
        "amount": 12,
        "event": "card declined",
        "level": "warning",
        "odd": "\0\ud800",
        "request": "r-17",
    }


def test_structlog_formats_all_records_alike(storage: DuckDBStorage, handler: Handler) -> None:
    structlog.configure(
        processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.KeyValueRenderer(key_order=["event"]),
            ]
        )
    )
    structlog.get_logger("shop.cart").error("card declined", request="r-17")
    logging.getLogger("plain").error("no structure")
    handler.flush()
    assert [row.raw_text for row in storage.logs.iter_records()] == [
        "event='card declined' request='r-17'",
        "event='no structure'",
    ]
