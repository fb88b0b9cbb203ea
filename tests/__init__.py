"""Tests of fiberstore; `README.md` says what is where."""
