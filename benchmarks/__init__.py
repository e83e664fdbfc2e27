"""One script a claim: `python -m benchmarks.NAME [--quick]` prints a table and writes JSON.

A full run writes `benchmarks/results/NAME.json`; `--quick` is a smoke run of a few seconds that
writes nothing. Nothing imports these, and no test times them.
"""
