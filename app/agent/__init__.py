"""The remote agent. Imports nothing else of ours but `app.children` and `app.logs`."""
