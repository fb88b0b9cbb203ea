"""The asynchronous face of the storages, on threads."""
