"""Promises of the DuckDB backend."""
