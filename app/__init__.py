"""Runyard: a control plane that runs a team's workflows on the team's own agents."""

__version__ = "0.1.0"
