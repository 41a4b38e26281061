"""The one error that users see."""


class UserError(Exception):
    """Something that the user can mend: one line that says what is wrong and what to do."""
