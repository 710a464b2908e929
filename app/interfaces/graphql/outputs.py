"""Outputs in the graph: found by id; tasks and teams list them."""

from app.domain.ids import Kind
from app.interfaces.graphql.declare import Noun
from app.interfaces.graphql.types.output import load_outputs

NOUN = Noun(nodes={Kind.OUTPUT: load_outputs})
