"""Which announced files may come in: decided for a whole call, each file on its own."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from app.domain.admission import Decision, Known, Quota, Refused, Repeated, decide, named
from app.domain.errors import AlreadyExists, InvalidInput, LimitExceeded, NotFound
from app.domain.file import FileClaim, FileRole, Output, RawFile, claim

MIB = 1024 * 1024
ROOM = Quota(outputs=10, size=1000)
OUTPUT, PREVIEW, THUMBNAIL = FileRole


def claimed(name: str = "a.png", role: FileRole = OUTPUT, **other: Any) -> FileClaim:
    made = FileClaim(role=role, name=name, media_type="image/png", size=10, sha256=b"\1" * 32, parts=())
    return replace(made, **other)


def kept(made: FileClaim) -> Output:
    at = datetime.now(UTC)
    lease: dict[str, Any] = {"team_id": uuid4(), "task_id": uuid4(), "attempt": 1, "lease_no": 1}
    fields = {name: getattr(made, name) for name in FileClaim.__dataclass_fields__}
    return Output(id=uuid4(), key="k", upload_id="", created_at=at, completed_at=None, **lease, **fields)


def kinds(decisions: list[Decision]) -> list[str]:
    return [
        type(each.error).__name__ if isinstance(each, Refused) else type(each).__name__.lower() for each in decisions
    ]


def test_announced_again_with_the_same_bytes_it_is_the_same_file() -> None:
    before = kept(claimed())

    assert decide([claimed()], {(OUTPUT, "a.png"): before}, room=ROOM) == [Known(before)]


def test_same_name_with_other_bytes_is_refused_and_stops_nobody() -> None:
    other = claimed(sha256=b"\2" * 32)

    decisions = decide([other, claimed("b.png")], {(OUTPUT, "a.png"): kept(claimed())}, room=ROOM)

    assert kinds(decisions) == [AlreadyExists.__name__, "new"]


def test_names_are_unique_within_a_call() -> None:
    decisions = decide([claimed(), claimed(), claimed(size=11)], {}, room=ROOM)

    assert decisions[1] == Repeated(0)
    assert kinds(decisions) == ["new", "repeated", AlreadyExists.__name__]


def test_thumbnail_needs_its_output() -> None:
    thumbnail = claimed(role=THUMBNAIL)

    assert kinds(decide([thumbnail], {}, room=ROOM)) == [NotFound.__name__]
    assert kinds(decide([thumbnail, claimed()], {}, room=ROOM)) == ["new", "new"]
    assert kinds(decide([thumbnail], {(OUTPUT, "a.png"): kept(claimed())}, room=ROOM)) == ["new"]


def test_room_counts_new_outputs_alone() -> None:
    files = [claimed(f"{n}") for n in range(3)]

    decisions = decide(
        [*files, claimed("0", THUMBNAIL), claimed("p", PREVIEW), claimed()],
        {(OUTPUT, "a.png"): kept(claimed())},
        room=Quota(outputs=2, size=1000),
    )

    assert kinds(decisions) == ["new", "new", LimitExceeded.__name__, "new", "new", "known"]


def test_room_counts_bytes() -> None:
    files = [claimed("a", size=600), claimed("b", size=600), claimed("c", size=400)]

    assert kinds(decide(files, {}, room=ROOM)) == ["new", LimitExceeded.__name__, "new"]


def test_preview_of_the_same_name_with_other_bytes_is_another_preview() -> None:
    one, two = (named(claimed("p", PREVIEW, sha256=bytes([n]) * 32)) for n in (1, 2))

    assert one.name != two.name
    assert kinds(decide([one, two], {(PREVIEW, one.name): kept(one)}, room=ROOM)) == ["known", "new"]


@pytest.mark.parametrize(
    ("changes", "paths"),
    [
        ({"role": PREVIEW, "size": 256 * 1024 + 1}, ["size"]),
        ({"role": THUMBNAIL, "media_type": "image/svg+xml"}, ["mediaType"]),
        ({"role": THUMBNAIL, "media_type": "text/html"}, ["mediaType"]),
        ({"size": -1}, ["size"]),
        ({"size": 100 * MIB + 1}, ["size"]),
        ({"sha256": "0" * 63}, ["sha256"]),
        ({"sha256": "g" * 64}, ["sha256"]),
        ({"size": 9 * MIB, "parts": ["0" * 64]}, ["parts"]),
        ({"parts": ["0" * 64]}, ["parts"]),
        ({"width": 0, "height": 10**9}, ["width", "height"]),
    ],
)
def test_faulty_claim_is_refused_with_its_paths(changes: dict[str, Any], paths: list[str]) -> None:
    raw = replace(RawFile(name="a", media_type="image/png", size=1, sha256="0" * 64), **changes)

    with pytest.raises(InvalidInput) as refusal:
        claim(raw, largest=100 * MIB, part_size=8 * MIB)

    assert [".".join(fault.path) for fault in refusal.value.faults] == paths


def test_claim_is_made_harmless() -> None:
    raw = RawFile(name="..\\x/\x00a\u202e.png", media_type="TEXT/HTML; charset=x", size=1, sha256="AB" * 32)

    made = claim(raw, largest=10, part_size=8 * MIB)

    assert (made.name, made.media_type, made.sha256) == ("x/a.png", "text/html", b"\xab" * 32)
