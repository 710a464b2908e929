"""Starts and ends the agents of pools. Adapters of the port `Provisioner`: they report, and never decide."""
