"""Minutes in which everything breaks, and no task is lost, stuck, or run by two.

`CHAOS_SEED` repeats a run's faults, `CHAOS_SECONDS` makes it shorter or longer, `CHAOS_FAULTS=0` leaves the faults out.
"""

from pathlib import Path

import pytest

from tests.chaos.run import SEED, chaos
from tests.servers import S3Config


@pytest.mark.slow
@pytest.mark.stress
@pytest.mark.timeout(1200)
async def test_no_task_is_lost_stuck_or_run_by_two_while_everything_breaks(
    tmp_path: Path, bucket: S3Config, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\nchaos run, CHAOS_SEED={SEED}", flush=True)

    verdict = await chaos(tmp_path, bucket)

    with capsys.disabled():
        print(f"\n{verdict.table()}", flush=True)
    assert verdict.complaints() == []
