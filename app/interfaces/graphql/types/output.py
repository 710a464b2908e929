"""What clients see of an output: one file that a task produced, with links that are minted as they are read."""

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import strawberry

from app.domain import file
from app.domain.ids import Kind
from app.interfaces.graphql.context import Context, Info
from app.interfaces.graphql.declare import argument, attribute, enum, field, global_id, object_type
from app.interfaces.graphql.nodes import Node
from app.interfaces.graphql.paging import Connection, connection
from app.interfaces.graphql.scalars import URL, BigInt
from app.services.outputs import OutputPage

if TYPE_CHECKING:
    from app.interfaces.graphql.types.task import Task


class Disposition(StrEnum):
    """What a browser is to do with a file."""

    ATTACHMENT = "attachment"
    INLINE = "inline"


enum(
    Disposition,
    {
        Disposition.ATTACHMENT: "Save it.",
        Disposition.INLINE: "Show it in place, where nothing in a file of its type can run; else save it.",
    },
)


@object_type()
class Output(Node):
    """One file that a task produced. Its name and type are what the agent said: show them as text."""

    name: str = attribute("Its name, unique in the attempt; may have folders.")
    media_type: str = attribute("What the agent said it is.")
    size: BigInt = attribute("Its bytes.")
    sha256: str = attribute("Its SHA-256, 64 hexadecimal digits; above 64 MiB as the agent reported it.")
    attempt: int = attribute("The number of the attempt that made it.")
    width: int | None = attribute("Of an image, in pixels, as the agent said.")
    height: int | None = attribute("Of an image, in pixels, as the agent said.")
    created_at: datetime = attribute("When the agent announced it.")
    row: strawberry.Private[file.Output]

    @field()
    async def url(
        self,
        info: Info,
        disposition: Annotated[Disposition, argument("What a browser is to do with it.")] = Disposition.ATTACHMENT,
    ) -> URL:
        """A fresh link to the file, good for 15 minutes and for whoever holds it."""
        inline = disposition is Disposition.INLINE
        return URL(await info.context.services.outputs.url(info.context.viewer, self.row, inline=inline))

    @field()
    async def thumbnail_url(self, info: Info) -> URL | None:
        """A fresh link to a small image of it; null where it has none."""
        return await info.context.loaders.of(load_thumbnails, info.context).load(self.row)

    @field()
    async def task(self, info: Info) -> Annotated["Task", strawberry.lazy("app.interfaces.graphql.types.task")] | None:
        """The task that produced it; null once it is no longer kept."""
        from app.interfaces.graphql.types.task import load_tasks  # noqa: PLC0415 - the nouns form a graph

        return await info.context.loaders.of(load_tasks, info.context).load(self.row.task_id)


def output(value: file.Output) -> Output:
    """The type of a service's value."""
    return Output(
        id=global_id(Kind.OUTPUT, value.id),
        name=value.name,
        media_type=value.media_type,
        size=BigInt(value.size),
        sha256=value.sha256.hex(),
        attempt=value.attempt,
        width=value.width,
        height=value.height,
        created_at=value.created_at,
        row=value,
    )


async def task_outputs(
    info: Info, task_id: UUID, *, first: int, after: str | None, lease_no: int | None = None
) -> Connection[Output]:
    """A page of what a task shows, for `Task.outputs`; with a lease's number, of what one attempt made."""
    pages = info.context.loaders.of(load_output_pages, info.context)
    counts = info.context.loaders.of(load_output_counts, info.context)
    return await connection(
        lambda limit, key: pages.load(OutputPage(task_id=task_id, lease_no=lease_no, limit=limit, after=key)),
        lambda: counts.load((task_id, lease_no)),
        first=first,
        after=after,
        id_of=lambda each: each.id,
        of=output,
    )


async def team_outputs(info: Info, team_id: UUID, *, first: int, after: str | None) -> Connection[Output]:
    """A page of what the team's tasks show, newest first, for `Team.outputs`."""
    outputs, viewer = info.context.services.outputs, info.context.viewer
    return await connection(
        lambda limit, key: outputs.team_page(viewer, team_id, limit=limit, before=key),
        lambda: outputs.team_count(viewer, team_id),
        first=first,
        after=after,
        id_of=lambda each: each.id,
        of=output,
    )


async def load_outputs(context: Context, ids: list[UUID]) -> list[Output | None]:
    """Those that the viewer may see, in the order of `ids`."""
    found = await context.services.outputs.by_ids(context.viewer, ids)
    return [output(found[id]) if id in found else None for id in ids]


async def load_output_pages(context: Context, wanted: list[OutputPage]) -> list[list[file.Output]]:
    """Pages of the outputs of many tasks."""
    return await context.services.outputs.pages(context.viewer, wanted)


async def load_output_counts(context: Context, tasks: list[tuple[UUID, int | None]]) -> list[int]:
    """How many outputs each task, or each lease of one, has."""
    return await context.services.outputs.counts(context.viewer, tasks)


async def load_thumbnails(context: Context, rows: list[file.Output]) -> list[URL | None]:
    """Links to the thumbnails of many outputs."""
    found = await context.services.outputs.thumbnail_urls(context.viewer, rows)
    return [URL(found[row.id]) if row.id in found else None for row in rows]
