"""Benchmarks: each goal is a ratio of two columns, measured side by side in one run."""
