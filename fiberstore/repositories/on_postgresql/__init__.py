"""What the repositories do on PostgreSQL alone."""
