"""From text to a document that may run: parsed, measured against the limits, validated; the good ones are remembered.

The cache is bounded by number, and each entry by the size limit of a document. What is refused is not remembered.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

from graphql import (
    ASTValidationRule,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    GraphQLError,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
    Visitor,
    parse,
    specified_rules,
    validate,
    visit,
)

from app.domain.errors import BadRequest, DomainError
from app.interfaces.engine.errors import Refused, public
from app.interfaces.engine.limits import Limits, OverLimit, refuse_over
from app.interfaces.engine.measuring import check_document, cost_of, pages_of

MAX_ERRORS = 10
"""Validation errors told at once."""

MAX_COSTS = 64
"""What a document remembers of its price: one for each of its operations and for each length of their lists."""


@dataclass(frozen=True)
class Document:
    """A document that fits the schema and the limits; `digest` stands for its text, which is never logged."""

    node: DocumentNode
    digest: str
    paged_by: frozenset[str] = frozenset()  # variables that its price depends on
    costs: dict[tuple[object, ...], int] = field(default_factory=dict, compare=False)  # that are known

    @cached_property
    def operations(self) -> dict[str | None, OperationDefinitionNode]:
        return {
            definition.name.value if definition.name else None: definition
            for definition in self.node.definitions
            if isinstance(definition, OperationDefinitionNode)
        }

    @cached_property
    def fragments(self) -> dict[str, FragmentDefinitionNode]:
        return {each.name.value: each for each in self.node.definitions if isinstance(each, FragmentDefinitionNode)}

    @cached_property
    def introspects(self) -> bool:
        """Whether it asks about the schema itself (`__typename` apart)."""
        finder = _Introspection()
        visit(self.node, finder)
        return finder.found

    def operation(self, name: str | None) -> OperationDefinitionNode:
        """The operation to run; raises `BadRequest` where `name` does not say which."""
        if name is None and len(self.operations) == 1:
            return next(iter(self.operations.values()))
        if name is None or name not in self.operations:
            known = ", ".join(str(each) for each in self.operations if each) or "none"
            raise BadRequest(f"expected `operationName` to be one of: {known}; found {name!r}", path=("operationName",))
        return self.operations[name]


class Documents:
    """The documents of one schema."""

    def __init__(self, schema: GraphQLSchema, limits: Limits, rules: Sequence[type[ASTValidationRule]] = ()) -> None:
        self._schema = schema
        self._limits = limits
        self._rules = (*specified_rules, *rules)
        self._known: OrderedDict[str, Document] = OrderedDict()

    def get(self, text: str, *, request_id: str) -> Document:
        """The document of `text`; raises `Refused` with everything that is wrong with it."""
        known = self._known.get(text)
        if known is not None:
            self._known.move_to_end(text)
            return known
        return self._remember(text, self._make(text, request_id))

    def cost(
        self, document: Document, operation: OperationDefinitionNode, variables: Mapping[str, Any] | None
    ) -> int | None:
        """What `operation` costs with these variables, None where documents have no price. Raises `OverLimit` for a
        page that is too long, `BadRequest` for one of nothing; the budget is the caller's to compare.
        """
        if self._limits.cost is None:
            return None
        pages = pages_of(operation, document.paged_by, variables)
        key = (operation.name and operation.name.value, *sorted(pages.items()))
        known = document.costs.get(key)
        if known is None:
            known = cost_of(document.node, operation, pages, self._limits, self._schema)
            if len(document.costs) >= MAX_COSTS:
                document.costs.clear()
            document.costs[key] = known
        return known

    def _remember(self, text: str, document: Document) -> Document:
        self._known[text] = document
        if len(self._known) > self._limits.documents:
            self._known.popitem(last=False)
        return document

    def _make(self, text: str, request_id: str) -> Document:
        encoded = text.encode("utf-8", "surrogatepass")
        try:
            refuse_over("bytes in a document", len(encoded), self._limits.document)
            node = self._parse(text)
            paged_by = check_document(node, self._limits, self._schema)
        except DomainError as error:
            raise Refused.of(error) from None
        except GraphQLError as error:
            raise Refused([public(error, request_id=request_id)], 400) from None
        errors = validate(self._schema, node, self._rules, max_errors=MAX_ERRORS, hide_suggestions=True)
        if errors:
            raise Refused([public(error, request_id=request_id) for error in errors], 400)
        return Document(node, sha256(encoded).hexdigest(), paged_by)

    def _parse(self, text: str) -> DocumentNode:
        try:
            return parse(text, max_lexical_tokens=self._limits.tokens)
        except GraphQLError as error:
            if "more than" in error.message and "tokens" in error.message:
                raise OverLimit("tokens in a document", self._limits.tokens + 1, self._limits.tokens) from None
            raise


def is_subscription(operation: OperationDefinitionNode) -> bool:
    return operation.operation is OperationType.SUBSCRIPTION


def is_query(operation: OperationDefinitionNode) -> bool:
    return operation.operation is OperationType.QUERY


class _Introspection(Visitor):
    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def enter_field(self, node: FieldNode, *_args: Any) -> None:
        self.found = self.found or node.name.value in {"__schema", "__type"}
