"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can put right: says what is wrong, where, and what to do.

    The command line prints it as one line on stderr and exits with code 2.
    """
