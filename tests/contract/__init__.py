"""Promises of every storage, face and backend."""
