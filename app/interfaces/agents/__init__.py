"""The agents' contract at `/agent/graphql`: its schema is `app/agent/schema.graphql`, and agent keys alone open it."""
