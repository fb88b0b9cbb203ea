"""Shared SQL: the ORM models, typed statements, and the connection that repositories need."""
