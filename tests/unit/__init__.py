"""Modules that need no database."""
