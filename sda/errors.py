"""The one exception for everything a user can cause and can mend."""


class SdaError(Exception):
    """Bad input. The message is one line: which file, what was expected, what was found, what to do.

    The command line prints it without a traceback and exits with status 2.
    """
