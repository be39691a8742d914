"""Ctrl-C and SIGTERM, made into one orderly end.

Inside `until_told()` the first signal raises KeyboardInterrupt, in the main thread; further ones
are ignored from then on, so that the clearing-up they would interrupt comes to its end. It owns the
two handlers while it lasts, and gives them back where no signal came.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def until_told() -> Iterator[None]:
    """Run the block; a signal ends it, and is not an error."""
    told = False

    def tell(_number: int, _frame: FrameType | None) -> None:
        nonlocal told
        if not told:
            told = True
            raise KeyboardInterrupt

    before = {number: signal.signal(number, tell) for number in SIGNALS}
    try:
        yield
    except KeyboardInterrupt:
        if not told:
            raise
    finally:
        for number, handler in before.items():
            # SIG_IGN, not `tell`: the interpreter takes our handlers away before it is quite gone.
            signal.signal(number, signal.SIG_IGN if told else handler)
