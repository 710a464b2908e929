"""The front ends' contract at `/graphql`; `schema.py` says how to add a noun."""
