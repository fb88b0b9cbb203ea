"""What the repositories do on DuckDB alone."""
