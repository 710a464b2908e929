"""Global ids say what they are of, and nothing else passes for one."""

from uuid import UUID

import pytest

from app.domain.errors import BadRequest
from app.domain.ids import Kind, decode, encode

ID = UUID("0199f0a0-0000-7000-8000-000000000001")


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_comes_back(kind: Kind) -> None:
    assert decode(encode(kind, ID), kind) == (kind, ID)


@pytest.mark.parametrize(
    "text",
    ["", "task_", "task", f"tasks_{ID}", f"task_{ID}x", f"task_{{{ID}}}", f"task_{ID.hex}", f"TASK_{ID}", f"wf_{ID}"],
)
def test_anything_else_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(BadRequest, match="expected an id like task_<uuid>"):
        decode(text, Kind.TASK)
