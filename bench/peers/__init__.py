"""Other task queues, each with a no-op task, set up for speed: no results kept, one worker process, logs off.

Each module names its `noop` and has `producer()`, whose value sends so many no-ops at once. `WORKERS` says how the
library's own program runs the module's worker. They run in an environment of their own, `.venv-bench`.
"""

WORKERS = {
    "celery": "celery -A bench.peers.with_celery worker --pool solo --loglevel ERROR --without-gossip --without-mingle "
    "--without-heartbeat",
    "dramatiq": "dramatiq bench.peers.with_dramatiq --processes 1 --threads 8 --skip-logging",
    "saq": "saq bench.peers.with_saq.settings --quiet",
    "arq": "arq bench.peers.with_arq.Worker",
    "taskiq": "taskiq worker bench.peers.with_taskiq:broker --workers 1 --log-level ERROR --max-async-tasks 100",
    "procrastinate": "procrastinate --app bench.peers.with_procrastinate.app worker --concurrency 30",
}
"""How each library's own program runs its worker."""

DURABLE = {"procrastinate"}
"""Those whose queue survives a crash of its server here: PostgreSQL with fsync. Valkey writes nothing to disk."""
