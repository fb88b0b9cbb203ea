"""The storage on DuckDB."""
