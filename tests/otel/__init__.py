"""Export, import and copies."""
