"""What a request may cost before anything of it runs: sizes, and one walk over the document.

The walk expands fragments by remembering each one's size, so it takes linear time whatever the document multiplies to.
A fragment that contains itself counts once here; validation refuses it.
"""

from dataclasses import dataclass
from typing import NamedTuple

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)

from app.domain.errors import LimitExceeded
from app.interfaces.engine.pace import Rate

KIB = 1024
MIB = 1024 * KIB

NESTING = 64
"""Selection sets inside each other, fragments and inline fragments included: bounds the walk's own recursion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one interface; sizes in bytes, times in seconds."""

    body: int = 1 * MIB
    document: int = 16 * KIB
    tokens: int = 2_000
    depth: int = 15  # levels of fields; introspection of the explorer has exactly 15
    aliases: int = 30
    root_fields: int = 20
    directives: int = 50
    documents: int = 512  # remembered
    deadline: float = 10.0  # of one operation, of opening a subscription, of one event
    message: int = 64 * KIB  # of a socket, from the client
    operations: int = 20  # at once on one socket
    rate: Rate | None = None  # of a socket, from the client; what is over waits
    init_timeout: float = 10.0
    buffer: int = 1 * MIB  # waiting to be written to one socket or stream
    send_timeout: float = 10.0
    recheck: float = 5.0  # between two looks at whether the identity behind a socket or a stream still stands
    keep_alive: float = 12.0  # between two signs of life on a stream over HTTP


class Size(NamedTuple):
    """What a selection set multiplies to: levels of fields, aliases, directives."""

    depth: int = 0
    aliases: int = 0
    directives: int = 0


def check_document(document: DocumentNode, limits: Limits) -> None:
    """Raise `LimitExceeded` where one of the document's operations is larger than `limits`."""
    fragments = {each.name.value: each for each in document.definitions if isinstance(each, FragmentDefinitionNode)}
    walk = _Walk(fragments, limits)
    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode):
            _check_operation(walk, definition, limits)


def _check_operation(walk: "_Walk", operation: OperationDefinitionNode, limits: Limits) -> None:
    size = walk.measure(operation.selection_set, level=0, nesting=0)
    refuse_over("aliases", size.aliases, limits.aliases)
    refuse_over("directives", size.directives + len(operation.directives or ()), limits.directives)
    refuse_over("root fields", len(operation.selection_set.selections), limits.root_fields)


def refuse_over(what: str, found: int, limit: int) -> None:
    """Raise `LimitExceeded` where `found` is more than `limit`."""
    if found > limit:
        raise LimitExceeded(f"expected at most {limit} {what}, found {found}")


class _Walk:
    def __init__(self, fragments: dict[str, FragmentDefinitionNode], limits: Limits) -> None:
        self._fragments = fragments
        self._limits = limits
        self._known: dict[str, Size] = {}
        self._open: set[str] = set()

    def measure(self, selections: SelectionSetNode | None, *, level: int, nesting: int) -> Size:
        """The size of `selections` that begin below `level` levels of fields; refuses what is too deep at once."""
        if selections is None:
            return Size()
        refuse_over("selections inside each other", nesting, NESTING)
        depth = aliases = directives = 0
        for node in selections.selections:
            inner = self._selection(node, level, nesting)
            depth = max(depth, inner.depth)
            aliases += inner.aliases
            directives += inner.directives + len(node.directives or ())
        return Size(depth, aliases, directives)

    def _selection(self, node: object, level: int, nesting: int) -> Size:
        if isinstance(node, FieldNode):
            refuse_over("levels of fields", level + 1, self._limits.depth)
            inner = self.measure(node.selection_set, level=level + 1, nesting=nesting + 1)
            return Size(inner.depth + 1, inner.aliases + (node.alias is not None), inner.directives)
        if isinstance(node, InlineFragmentNode):
            return self.measure(node.selection_set, level=level, nesting=nesting + 1)
        return self._spread(node.name.value, level, nesting) if isinstance(node, FragmentSpreadNode) else Size()

    def _spread(self, name: str, level: int, nesting: int) -> Size:
        fragment = self._fragments.get(name)
        if fragment is None or name in self._open:
            return Size()
        if name not in self._known:
            self._open.add(name)
            self._known[name] = self.measure(fragment.selection_set, level=level, nesting=nesting + 1)
            self._open.discard(name)
        refuse_over("levels of fields", level + self._known[name].depth, self._limits.depth)
        return self._known[name]
