"""The one error of data."""

from ...config.overlay import ConfigError


class DataError(ConfigError):
    """The data cannot be had or is not what the task needs; the message says what was found and what to do."""
