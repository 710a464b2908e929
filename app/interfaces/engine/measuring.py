"""One walk over a document before anything of it runs: how large it is, and what it costs.

The walk remembers what each fragment comes to, so that it visits each selection of the text once, whatever the
document multiplies to. What a fragment costs depends on the page that it is spread in; it is therefore kept as two
numbers, what it costs once and what it costs for each item. A fragment that contains itself counts once here;
validation refuses it.

    a leaf 0, an object 1, a mutation 10, a connection 1 + first x what stands in its lists
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLArgument,
    GraphQLCompositeType,
    GraphQLField,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    ListValueNode,
    NamedTypeNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    ValueNode,
    VariableNode,
    get_named_type,
    get_nullable_type,
    is_composite_type,
    is_list_type,
)

from app.domain.errors import BadRequest
from app.interfaces.engine.limits import Limits, refuse_over

NESTING = 64
"""Selection sets inside each other, fragments and inline fragments included: bounds the walk's own recursion."""

OBJECT = 1
MUTATION = 10

PAGES = ("first", "last")
"""Arguments that say how many items a connection has."""

IDS = "ids"
"""Argument of a list that has one item for each of them."""

MAX_DIGITS = 18
"""Of a number in a document; a longer one is as good as this many nines."""

Pages = Mapping[str, int | None]
"""What the variables that say how long a list is stand for; None where they are not given, or are no number."""


@dataclass(slots=True)
class Size:
    """What a selection set multiplies to, with its fragments expanded."""

    depth: int = 0  # levels of fields
    aliases: int = 0
    directives: int = 0
    nodes: int = 0  # fields
    cost: int = 0  # of what stands once
    each: int = 0  # cost of what stands in lists, for one item
    names: dict[str, tuple[int, int]] = field(default_factory=dict)  # in the answer: sum of nodes, and of their squares
    fields: dict[str, int] = field(default_factory=dict)  # how often each one is selected at this level

    def add(self, other: "Size") -> None:
        """Count `other`, which stands beside what was counted."""
        self.depth = max(self.depth, other.depth)
        self.aliases += other.aliases
        self.directives += other.directives
        self.nodes += other.nodes
        self.cost += other.cost
        self.each += other.each
        for name, (total, squares) in other.names.items():
            known = self.names.get(name, (0, 0))
            self.names[name] = (known[0] + total, known[1] + squares)
        for name, times in other.fields.items():
            self.fields[name] = self.fields.get(name, 0) + times

    @property
    def width(self) -> int:
        return sum(self.fields.values())

    @property
    def repeats(self) -> int:
        """Pairs of fields that may have to be compared, because those above them share a name in the answer."""
        return sum((total * total - squares) // 2 for total, squares in self.names.values())


def check_document(document: DocumentNode, limits: Limits, schema: GraphQLSchema) -> frozenset[str]:
    """The variables that the price of `document` depends on; raises `OverLimit` where the document is too large.

    The document need not be valid: this comes first, because validation takes more than linear time.
    """
    walk = Walk(document, limits, schema)
    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode):
            _check_operation(walk.operation(definition), definition, limits)
        elif isinstance(definition, FragmentDefinitionNode):
            walk.fragment(definition.name.value)  # also where nothing spreads it: it is validated all the same
    refuse_over("pairs of fields of the same name", walk.repeats, limits.repeats)
    return frozenset(walk.paged_by)


def cost_of(
    document: DocumentNode, operation: OperationDefinitionNode, pages: Pages, limits: Limits, schema: GraphQLSchema
) -> int:
    """What `operation` costs with these lengths of lists; raises `OverLimit` or `BadRequest` for a page that may not
    be asked for.
    """
    size = Walk(document, limits, schema, pages).operation(operation)
    return size.cost + size.each


def pages_of(operation: OperationDefinitionNode, names: frozenset[str], variables: Mapping[str, Any] | None) -> Pages:
    """What the variables `names` stand for in one request: numbers, and the lengths of lists."""
    given = variables or {}
    defaults = {each.variable.name.value: each.default_value for each in operation.variable_definitions or ()}
    return {name: _length(given[name]) if name in given else _written(defaults.get(name)) for name in names}


def _check_operation(size: Size, operation: OperationDefinitionNode, limits: Limits) -> None:
    refuse_over("aliases", size.aliases, limits.aliases)
    refuse_over("directives", size.directives + len(operation.directives or ()), limits.directives)
    refuse_over("root fields", size.width, limits.root_fields)
    refuse_over("fields", size.nodes, limits.nodes)
    if operation.operation is OperationType.MUTATION:
        for name, times in size.fields.items():
            refuse_over(f"times `{name}` in one request", times, 1 if name in limits.once else limits.same_mutation)


class Walk:
    """One pass over one document. `visits` counts the selections that were looked at, `repeats` the pairs of fields
    that validation compares, `paged_by` the variables that say how long lists are.
    """

    def __init__(
        self, document: DocumentNode, limits: Limits, schema: GraphQLSchema, pages: Pages | None = None
    ) -> None:
        self.visits = 0
        self.repeats = 0
        self.paged_by: set[str] = set()
        self._fragments = {
            each.name.value: each for each in document.definitions if isinstance(each, FragmentDefinitionNode)
        }
        self._limits = limits
        self._schema = schema
        self._pages = pages or {}
        self._known: dict[str, Size] = {}
        self._open: set[str] = set()

    def operation(self, node: OperationDefinitionNode) -> Size:
        """What a whole operation comes to."""
        return self._measure(node.selection_set, self._schema.get_root_type(node.operation), 0, 0)

    def fragment(self, name: str, level: int = 0, nesting: int = 0) -> Size:
        """What the fragment `name` comes to below `level` levels of fields."""
        node = self._fragments.get(name)
        if node is None or name in self._open:
            return Size()
        if name not in self._known:
            self._open.add(name)
            size = self._measure(node.selection_set, self._type(node.type_condition), level, nesting)
            self._open.discard(name)
            size.directives += len(node.directives or ())
            self._known[name] = size
        refuse_over("levels of fields", level + self._known[name].depth, self._limits.depth)
        return self._known[name]

    def _measure(
        self, selections: SelectionSetNode | None, parent: GraphQLCompositeType | None, level: int, nesting: int
    ) -> Size:
        """The size of `selections` that begin below `level` levels of fields; refuses what is too deep at once."""
        size = Size()
        if selections is None:
            return size
        refuse_over("selections inside each other", nesting, NESTING)
        for node in selections.selections:
            self.visits += 1
            size.add(self._selection(node, parent, level, nesting))
            size.directives += len(node.directives or ())
        refuse_over("fields in one selection", size.width, self._limits.width)
        self.repeats += size.repeats
        return size

    def _selection(self, node: object, parent: GraphQLCompositeType | None, level: int, nesting: int) -> Size:
        if isinstance(node, FieldNode):
            return self._field(node, parent, level, nesting)
        if isinstance(node, InlineFragmentNode):
            narrowed = self._type(node.type_condition) if node.type_condition else parent
            return self._measure(node.selection_set, narrowed, level, nesting + 1)
        return self.fragment(node.name.value, level, nesting + 1) if isinstance(node, FragmentSpreadNode) else Size()

    def _field(self, node: FieldNode, parent: GraphQLCompositeType | None, level: int, nesting: int) -> Size:
        refuse_over("levels of fields", level + 1, self._limits.depth)
        name = node.name.value
        definition = self._schema.get_field(parent, name) if parent else None
        inner = self._measure(node.selection_set, _composite(definition), level + 1, nesting + 1)
        cost, each = self._price(node, definition, parent, inner) if definition else (0, 0)
        nodes = inner.nodes + 1
        return Size(
            depth=inner.depth + 1,
            aliases=inner.aliases + (node.alias is not None),
            directives=inner.directives,
            nodes=nodes,
            cost=cost,
            each=each,
            names={node.alias.value if node.alias else name: (nodes, nodes * nodes)},
            fields={name: 1},
        )

    def _price(
        self, node: FieldNode, definition: GraphQLField, parent: GraphQLCompositeType | None, inner: Size
    ) -> tuple[int, int]:
        """What a field costs: once, and for each item of the list that it stands in."""
        own = OBJECT if _composite(definition) else 0
        if parent is self._schema.mutation_type:
            own = MUTATION
        whole = own + inner.cost + inner.each * self._page(node, definition)
        if not is_list_type(get_nullable_type(definition.type)):
            return whole, 0
        return 0, whole * (self._given(node, definition, IDS) or 1)

    def _page(self, node: FieldNode, definition: GraphQLField) -> int:
        """How many items the lists below this field have; 1 where nothing says so."""
        for name in PAGES:
            length = self._given(node, definition, name)
            if length is None:
                continue
            if length < 1:
                raise BadRequest(f"expected `{name}` from 1 to {self._limits.page}, found {length}", path=(name,))
            refuse_over(f"items by `{name}`", length, self._limits.page)
            return length
        return 1

    def _given(self, node: FieldNode, definition: GraphQLField, name: str) -> int | None:
        """The number, or the length of the list, that argument `name` is given or has by default."""
        argument = definition.args.get(name)
        if argument is None:
            return None
        given = next((each.value for each in node.arguments or () if each.name.value == name), None)
        if isinstance(given, VariableNode):
            self.paged_by.add(given.name.value)
            length = self._pages.get(given.name.value)
        else:
            length = _written(given)
        return _default(argument) if length is None else length

    def _type(self, node: NamedTypeNode) -> GraphQLCompositeType | None:
        named = self._schema.get_type(node.name.value)
        return named if is_composite_type(named) else None


def _composite(definition: GraphQLField | None) -> GraphQLCompositeType | None:
    named = get_named_type(definition.type) if definition else None
    return named if is_composite_type(named) else None


def _default(argument: GraphQLArgument) -> int | None:
    """The same of an argument that is not given: its default is a value, or a literal of a schema that was parsed."""
    if argument.default is None:
        return _length(argument.default_value)
    literal = argument.default.literal
    return _written(literal) if literal is not None else _length(argument.default.value)


def _written(value: ValueNode | None) -> int | None:
    """The number, or the length of the list, that stands in a document."""
    if isinstance(value, IntValueNode):
        digits = value.value.removeprefix("-")
        number = int(digits if len(digits) <= MAX_DIGITS else "9" * MAX_DIGITS)
        return -number if value.value.startswith("-") else number
    return len(value.values) if isinstance(value, ListValueNode) else None


def _length(value: object) -> int | None:
    """The number, or the length of the list, that a variable was given; None where it is neither."""
    if isinstance(value, list):
        return len(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        return None
    return int(value)
