"""Storage for log correlation: logs, and the fibers that join them, in DuckDB."""
