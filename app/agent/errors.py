"""What can go wrong between the agent and the rest of the world, by what has to be done about it."""


class AgentError(Exception):
    """The base of the agent's own errors; the text is a sentence for people."""


class ConfigError(AgentError):
    """The configuration is wrong: say so and exit 2."""


class Forbidden(AgentError):
    """The server refuses this agent for good: stop."""


class Disconnected(AgentError):
    """The connection is gone or was never there: open another and repeat."""


class NoAnswer(AgentError):
    """The connection lives, the answer did not come in time: repeat."""


class OperationFailed(AgentError):
    """The server answered with a top-level error instead of data."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class LeaseLost(AgentError):
    """The lease is over, definitively: stop the work, clean up, release, report nothing more."""


class RefusedByAgent(AgentError):
    """This agent does not run such a task; the text says what it expected and what it found."""


class InputFailed(AgentError):
    """An input file could not be brought in as promised."""


class OutputRefused(AgentError):
    """An output was refused, here or by the server; the text says which and why."""
