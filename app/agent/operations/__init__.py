"""The agent's documents, one file for each operation of the contract: trusted by the server, sent as they are."""

from functools import cache
from importlib.resources import files


@cache
def document(operation: str) -> str:
    """The text of the operation whose root field is `operation`."""
    return files(__name__).joinpath(f"{operation}.graphql").read_text()


def operation_name(operation: str) -> str:
    """The name that the document gives its one operation: the root field with a capital."""
    return operation[0].upper() + operation[1:]
