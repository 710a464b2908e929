"""The agents' contract, at /agent/graphql."""
