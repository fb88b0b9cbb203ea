"""Promises of the PostgreSQL backend."""
