"""Copies of stores, and checksums that compare them."""
