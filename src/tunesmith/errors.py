"""The error for problems that the user can fix. The message names what, where and what to do; the exit code is 2."""


class UserError(Exception):
    """A problem in the user's input: a recipe, a file, a model, or a device that is too small.

    The message is one line (or a few) in plain English: what is wrong, where (file and row, recipe field) and what
    to do. The command line prints it without a traceback and exits with code 2.
    """
