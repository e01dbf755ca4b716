"""The exception for every error that the user can fix."""


class SdaError(Exception):
    """Bad input. The message is one line: the file, what was expected, what was found, and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """
