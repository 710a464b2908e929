"""The front ends' contract, at /graphql."""
