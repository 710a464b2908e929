"""Entry points driven by a clock: the same services."""
