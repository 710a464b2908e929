"""Input uploads in the graph: the bytes go straight to the object store, these mutations stand before and after."""

from typing import Annotated

import strawberry

from app.domain.file import RawFile
from app.domain.ids import Kind, decode
from app.interfaces.graphql.context import Info
from app.interfaces.graphql.declare import Noun, argument, attribute, input_type, object_type, union
from app.interfaces.graphql.mutations import mutation
from app.interfaces.graphql.scalars import BigInt
from app.interfaces.graphql.types.refusal import CommonRefusals, IdempotencyConflict, WrongState
from app.interfaces.graphql.types.upload import SignedRequest, Upload, load_uploads, signed_request, upload
from app.services.access import Permission


@input_type()
class BeginUploadInput:
    """A file that is to come in, described beforehand: the store takes exactly this and nothing else."""

    team_id: strawberry.ID = attribute("The team whose tasks may use it.")
    name: str = attribute("Its name for people; it never becomes a path.")
    media_type: str = attribute("What it is, such as `image/png`.")
    size: BigInt = attribute("Its bytes.")
    sha256: str = attribute("SHA-256 of the whole file, 64 hexadecimal digits.")
    parts: list[str] | None = attribute(
        "SHA-256 of each part of 64 MiB (the last may be smaller), where the file is larger than that.",
        default=None,
    )
    idempotency_key: str | None = attribute(
        "Makes a repeated call return the first call's upload, with fresh requests for what is missing.", default=None
    )


@object_type()
class BeginUploadSuccess:
    """The upload may begin. It dies after a day unless a submit names it."""

    upload: Upload = attribute("The upload; complete it once its bytes are sent.")
    requests: list[SignedRequest] = attribute(
        "One for the whole file, or one for each part, in order; none where the bytes are there already."
    )
    part_size: BigInt = attribute("Bytes of each part but the last; 0 where one request takes the whole file.")


BeginUploadResult = Annotated[BeginUploadSuccess | IdempotencyConflict | CommonRefusals, union("BeginUploadResult")]


@input_type()
class CompleteUploadInput:
    """An upload whose bytes were sent."""

    upload_id: strawberry.ID = attribute("The upload.")


@object_type()
class CompleteUploadSuccess:
    """The store has verified the bytes: a submit may name the upload."""

    upload: Upload = attribute("The upload as it now is.")


CompleteUploadResult = Annotated[CompleteUploadSuccess | WrongState | CommonRefusals, union("CompleteUploadResult")]


@object_type()
class UploadMutations:
    """Input files."""

    @mutation(Permission.RUN, makes=Kind.UPLOAD)
    async def begin_upload(
        self, info: Info, input: Annotated[BeginUploadInput, argument("The file.")]
    ) -> BeginUploadResult:
        """Announce an input file and get signed requests for its bytes."""
        described = RawFile(
            name=input.name,
            media_type=input.media_type,
            size=input.size,
            sha256=input.sha256,
            parts=input.parts or (),
        )
        begun = await info.context.services.uploads.begin(
            info.context.viewer,
            decode(input.team_id, Kind.TEAM)[1],
            described,
            idempotency_key=input.idempotency_key,
        )
        return BeginUploadSuccess(
            upload=upload(begun.upload),
            requests=[signed_request(each) for each in begun.plan.requests],
            part_size=BigInt(begun.plan.part_size),
        )

    @mutation(Permission.RUN)
    async def complete_upload(
        self, info: Info, input: Annotated[CompleteUploadInput, argument("Which upload.")]
    ) -> CompleteUploadResult:
        """Say that the bytes were sent: the store verifies size and SHA-256. May be repeated."""
        id = decode(input.upload_id, Kind.UPLOAD)[1]
        return CompleteUploadSuccess(
            upload=upload(await info.context.services.uploads.complete(info.context.viewer, id))
        )


NOUN = Noun(mutation=UploadMutations, nodes={Kind.UPLOAD: load_uploads})
