"""Plain HTTP routes: signed files, health."""
