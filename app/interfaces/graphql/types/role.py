"""A user's role in a team, as an enum of the schema: import it from here, so that it is described before it is used."""

from app.domain.people import Role as Role
from app.interfaces.graphql.declare import enum

enum(
    Role,
    {
        Role.OWNER: "Everything, also to transfer the team; exactly one.",
        Role.ADMIN: "Everything but to transfer and delete the team.",
        Role.MEMBER: "Reads, submits, uploads, and cancels and re-runs its own tasks.",
        Role.VIEWER: "Reads.",
    },
)
