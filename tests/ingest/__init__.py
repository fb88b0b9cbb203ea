"""Log files into a store."""
