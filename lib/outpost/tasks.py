"""Tasks: the application's handlers, each kept from stopping the device.

A handler that takes long is a generator: the loop takes it one step further in each slice, and
between two steps the connection lives on (keep-alive, acknowledgements, messages).

    def blink(payload):
        for _ in range(20):
            led.toggle()
            yield 500            # milliseconds until it goes on; a bare `yield`: in the next slice
        return "done"

Whatever a handler raises ends that call alone. Owns no flash.
"""

import sys

from micropython import const

from . import log
from .errors import OutpostError

PENDING_MAX = const(4)  # handlers under way; with so many the device reads nothing new
HANDLER_S = const(600)  # that a message's or a desired property's may take: a slot is not for ever
OK, RAISED, TIMED_OUT = const(0), const(1), const(2)


def _nothing():
    yield


_GENERATOR = type(_nothing())


def name_of(handler):
    return getattr(handler, "__name__", "handler")


class _Task:
    def __init__(self, name, steps, done, deadline):
        self.name = name
        self.steps = steps
        self.done = done
        self.deadline = deadline  # uptime in ms, None: it may take as long as it likes
        self.due = 0


class Tasks:
    def __init__(self):
        self._running = []

    def __len__(self):
        return len(self._running)

    def full(self):
        return len(self._running) >= PENDING_MAX

    def call(self, handler, arguments, done=None, timeout_s=None):
        """Call a handler; done(outcome, value) comes when it is through, perhaps at once.

        outcome  OK and what it returned, RAISED and the exception, TIMED_OUT and None
        """
        name = name_of(handler)
        try:
            value = handler(*arguments)
        except BaseException as e:
            _ended(name, done, e)
            return
        if type(value) is not _GENERATOR:
            if done:
                done(OK, value)
            return
        deadline = None if timeout_s is None else log.uptime_ms() + int(timeout_s * 1000)
        self._running.append(_Task(name, value, done, deadline))

    def step(self):
        """Take each that is due one step further. Returns ms until the next is, at most 1000."""
        wait = 1000
        for task in list(self._running):
            now = log.uptime_ms()
            if task.deadline is not None and now >= task.deadline:
                self._running.remove(task)
                self._close(task)
                log.say("app", "%s was not through in its time and was ended" % task.name)
                if task.done:
                    task.done(TIMED_OUT, None)
                continue
            if task.due > now:
                wait = min(wait, task.due - now)
                continue
            if self._advance(task):
                wait = min(wait, max(0, task.due - log.uptime_ms()))
        return wait

    def _advance(self, task):
        """One step. False where that was its last."""
        try:
            pause = next(task.steps)
        except StopIteration as e:
            self._running.remove(task)
            if task.done:
                task.done(OK, e.value)
            return False
        except BaseException as e:
            self._running.remove(task)
            _ended(task.name, task.done, e)
            return False
        # Whatever else it yields means: in the next slice.
        task.due = log.uptime_ms() + pause if isinstance(pause, int) and pause > 0 else 0
        return True

    def _close(self, task):
        try:
            task.steps.close()
        except Exception as e:
            _report(task.name, e)


def _report(name, e):
    if isinstance(e, OutpostError):
        log.error(e)
        return
    # The application's own fault: its traceback is for its author, and the device goes on.
    log.say("app", "%s raised %s" % (name, type(e).__name__))
    sys.print_exception(e)


def _ended(name, done, e):
    """It raised. What ends the program (Ctrl-C, SystemExit) goes on after the caller was told."""
    goes_on = isinstance(e, Exception)
    if goes_on:
        _report(name, e)
    try:
        if done:
            done(RAISED, e)
    finally:
        if not goes_on:
            raise e
