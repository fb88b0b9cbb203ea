"""A crash campaign: programs that write are killed, and their stores checked."""
