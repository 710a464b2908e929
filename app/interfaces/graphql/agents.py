"""Agents in the graph: found by id, and listed by their team."""

from app.domain.ids import Kind
from app.interfaces.graphql.declare import Noun
from app.interfaces.graphql.types.agent import load_agents

NOUN = Noun(nodes={Kind.AGENT: load_agents})
