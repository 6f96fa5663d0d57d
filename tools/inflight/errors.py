"""The package's exceptions. Each text names the thing, what was found and what was wanted."""


class InflightError(Exception):
    """Base of all errors that a user can act on; the command line prints its text without a traceback."""


class NetworkError(InflightError):
    """A network definition is wrong: shapes that do not fit, a tensor used outside its block, a name given twice."""


class UnsupportedError(InflightError):
    """Well-formed, but the engine has no way to run it."""


class CheckpointError(InflightError):
    """A checkpoint folder lacks something or holds something else than the network wants."""


class PlanError(InflightError):
    """A plan is not valid against the schema or refers to something that it does not define."""
