"""The one exception that a person is meant to read.

Its text is a whole sentence that says what is wrong and what to do next. The command line prints it
and exits with 1; a program may catch it. It never carries a key or a token.
"""


class OutpostError(Exception):
    """Something that the person at the keyboard can put right."""


class HubTrouble(OutpostError):
    """The hub cannot be used just now, or refuses whoever asks: it says nothing of any device."""
