"""The contract of timelines, on DuckDB."""

from fiberstore.testing.timelines import TimelinesContract


class TestTimelines(TimelinesContract):
    pass
