"""One script for each claim: `python -m benchmarks.NAME [--quick]` prints a table and writes JSON.

A full run writes `benchmarks/results/NAME.json`; `--quick` is a smoke run of a few seconds that
writes nothing. The packages never import a benchmark, and no test measures its time.
"""
