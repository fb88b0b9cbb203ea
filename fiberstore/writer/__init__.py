"""Buffered writers: records are collected and stored in batches."""
