"""What the user can mend. Apart from all else, so that a command can refuse bad input before it imports anything."""


class UserError(Exception):
    """Something the user can mend; the message is one sentence that says what is wrong and what to do."""


class DataError(UserError):
    """The user's own data cannot be used."""


class SettingsError(ValueError):
    """A setting that cannot be used; the message is one sentence for the user."""
