"""`python -m app.interfaces.graphql.policies > tests/contract/policies.txt` writes the table of policies anew."""

import sys

from app.interfaces.graphql import policy, schema

if __name__ == "__main__":
    sys.stdout.write(policy.table(schema.build()))
