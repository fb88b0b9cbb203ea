"""Timelines of fibers as pages of HTML."""
