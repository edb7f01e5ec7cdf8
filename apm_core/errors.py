"""The errors that a user can cause or repair. Each message is one line: what, where, found, what to
do.
"""


class ApmError(Exception):
    """Base of every error raised on purpose by apm."""


class ConfigError(ApmError, ValueError):
    """A setting is missing, of the wrong type, out of bounds or at odds with another."""


class DataError(ApmError, ValueError):
    """The images cannot be used as they are."""


class ArtifactError(ApmError, OSError):
    """A file of an earlier stage is damaged, of another kind or made from other settings."""


class DivergenceError(ApmError, ArithmeticError):
    """Training produced a value that is not finite."""


class OutOfMemoryError(ApmError, MemoryError):
    """The work does not fit into memory, however it is cut."""


class InterruptedRunError(ApmError):
    """The job was asked to stop, and saved what it had done."""
