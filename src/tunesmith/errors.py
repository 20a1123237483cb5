"""The one error that is the user's to mend: it says what, where and what to do, and ends with exit code 2."""


class UserError(Exception):
    """A problem in what the user gave: a recipe, a file, a model, a device too small.

    The message is one line (or a few rows) in plain English: what is wrong, where (file and row, recipe field)
    and what to do. The command line prints it without a traceback and exits with 2.
    """
