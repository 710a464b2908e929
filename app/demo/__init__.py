"""The example workflow and its agent's configuration."""
