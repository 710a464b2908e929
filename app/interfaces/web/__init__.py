"""The sign-in page and the explorer, served from our own origin."""
