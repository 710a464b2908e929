"""Which of the files that an agent announces under a lease may come in. Decided at once for a whole call, without I/O.

A file is known by (role, name): announced again with the same bytes it is the same file, with others it is refused. A
preview is a latest value, so its bytes are part of its name. One refused file never stops the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from app.domain.errors import AlreadyExists, DomainError, LimitExceeded, NotFound
from app.domain.file import FileClaim, FileRole, Output, same_file

Name = tuple[FileRole, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What one task may keep, over all of its attempts: outputs, and their bytes."""

    outputs: int
    size: int


@dataclass(frozen=True, slots=True)
class Known:
    """Announced before, under this lease."""

    output: Output


@dataclass(frozen=True, slots=True)
class New:
    claim: FileClaim


@dataclass(frozen=True, slots=True)
class Repeated:
    """The same file as item `first` of this call."""

    first: int


@dataclass(frozen=True, slots=True)
class Refused:
    error: DomainError


Decision = Known | New | Repeated | Refused


def named(claim: FileClaim) -> FileClaim:
    """The claim under the name that it is kept by."""
    if claim.role is not FileRole.PREVIEW:
        return claim
    return replace(claim, name=f"{claim.name[:60]} {claim.sha256.hex()[:16]}")


def decide(
    claims: Sequence[FileClaim | DomainError],
    kept: Mapping[Name, Output],
    *,
    room: Quota,
) -> list[Decision]:
    """One decision for each claim, in order. `kept` is what this lease has announced, `room` what the task has left."""
    decisions: list[Decision] = []
    first: dict[Name, int] = {}
    for index, claim in enumerate(claims):
        decision = _decide(claim, kept, first, claims, room)
        if isinstance(decision, New):
            first[decision.claim.role, decision.claim.name] = index
            if decision.claim.role is FileRole.OUTPUT:
                room = Quota(outputs=room.outputs - 1, size=room.size - decision.claim.size)
        decisions.append(decision)
    return decisions


def _decide(
    claim: FileClaim | DomainError,
    kept: Mapping[Name, Output],
    first: Mapping[Name, int],
    claims: Sequence[FileClaim | DomainError],
    room: Quota,
) -> Decision:
    if isinstance(claim, DomainError):
        return Refused(claim)
    name = (claim.role, claim.name)
    if name in kept:
        return Known(kept[name]) if same_file(kept[name], claim) else Refused(_taken(claim))
    if name in first:
        return Repeated(first[name]) if claims[first[name]] == claim else Refused(_taken(claim))
    if claim.role is FileRole.THUMBNAIL and not _has_output(claim.name, kept, claims):
        return Refused(NotFound(f"a thumbnail has the name of its output, there is no output {claim.name!r}"))
    if claim.role is FileRole.OUTPUT:
        return _within(claim, room)
    return New(claim)


def _within(claim: FileClaim, room: Quota) -> Decision:
    if room.outputs < 1:
        return Refused(LimitExceeded("the task has as many outputs as it may have"))
    if claim.size > room.size:
        return Refused(
            LimitExceeded(f"expected at most {max(0, room.size)} bytes more for this task, found {claim.size}")
        )
    return New(claim)


def _has_output(name: str, kept: Mapping[Name, Output], claims: Sequence[FileClaim | DomainError]) -> bool:
    announced = (each for each in claims if isinstance(each, FileClaim) and each.role is FileRole.OUTPUT)
    return (FileRole.OUTPUT, name) in kept or any(each.name == name for each in announced)


def _taken(claim: FileClaim) -> AlreadyExists:
    return AlreadyExists(f"the attempt has another {claim.role} named {claim.name!r}", path=("name",))
