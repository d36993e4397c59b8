"""What an operator can fix. Every message says where, what was given and what was expected."""


class MltrustError(Exception):
    """Base of the errors that end a job with exit code 2 and one clear message, without a traceback."""


class ConfError(MltrustError):
    """A conf file or a command line argument is invalid."""


class SchemaError(MltrustError):
    """A table or a file does not have the columns or types that it should have."""


class DataError(MltrustError):
    """The input that a job was asked to read does not exist or is not usable."""


class PlatformError(MltrustError):
    """The machine or cluster lacks what the job needs (Java, a JAR, a writable folder)."""
