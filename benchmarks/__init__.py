"""Benchmarks of fiberstore beside DuckDB alone and beside its alternatives.

    python -m benchmarks [--quick]

| module | part |
|---|---|
| ``data`` | seeded logs, fibers and memberships |
| ``stores`` | the stores that are compared, each written as its own documentation recommends |
| ``writing`` | rows into new stores; many small transactions |
| ``growing`` | stores that grow side by side, and what writes and reads cost at each size |
| ``runtime_bench`` | tasks against threads; memory; import, open, recovery |
| ``report`` | the table, the JSON file and the plots |

``python -m benchmarks.ingest`` measures log files into a store beside a plain program.

Everything is compared within one run, in turn, on the same data, and reported as medians and ratios.
"""
