"""Trial: new software proves itself, or the one before it comes back.

Kept for good only when, in one start, the device has connected (server verified), the hub has
acknowledged a message, and the application's health check has said True. Loaded only while software
is on trial. Writes the NVS entries "app-*" (agreed.py); boot.py ends a trial that hangs or
crashes. Never ends one in favour of the new software on anybody's word.
"""

import gc

from micropython import const

from . import agreed, log, resumption, slots, watchdog
from .errors import OutpostError, number

_ASK_MS = const(1000)
FIRMWARE = const(16)  # and above: the trial is of the firmware, named by its partition's subtype


def current(nvs):
    """The number of what is on trial in this start, or -1."""
    trial = _number(nvs, slots.NVS_APP_TRIAL)
    if trial < 0:
        return -1
    if trial >= FIRMWARE:
        import esp32

        if esp32.Partition(esp32.Partition.RUNNING).info()[1] == trial:
            return trial
        log.say("update", "the new firmware did not hold: the one before it runs again")
        _over(nvs, FIRMWARE + slots.ENDED, _number(nvs, slots.NVS_FIRMWARE_VERSION))
        return -1
    if trial != _number(nvs, slots.NVS_APP_CURRENT):
        # boot.py runs another one where it could not count this start.
        import os

        return trial if os.getcwd() == slots.APP_SLOTS[trial & 1] else -1
    _over(nvs)
    return -1


def _over(nvs, *outcome):
    """The trial is over. An NVS that takes nothing is no reason not to start."""
    try:
        try:
            if outcome:
                _outcome(nvs, *outcome)
        finally:
            _erase(nvs, slots.NVS_APP_TRIAL)
    except OSError as e:
        log.say("update", "the end of the trial cannot be noted (%s)" % e)


class Trial:
    """trial is the slot, or the firmware's subtype; step() is called at the end of each slice."""

    def __init__(self, device, nvs, trial):
        self._device = device
        self._nvs = nvs
        self._trial = trial
        self._asked = None  # uptime at which step() last did more than look
        self._said = None
        self._sent = False
        resumption.forget()  # a resumed session proves little: the handshake is to be a whole one
        watchdog.arm(agreed.WATCHDOG_S)  # boot.py has armed it: from now on progress feeds it
        log.say("update", "%s is on trial" % self._name())

    def _name(self):
        if self._trial >= FIRMWARE:
            version = _number(self._nvs, slots.NVS_FIRMWARE_VERSION)
            return "firmware version=%d" % version
        name = slots.NVS_APP_SLOTS[self._trial]
        return "software version=%d in slot %s" % (max(0, _number(self._nvs, name)), name[-1])

    def step(self):
        """Whether the trial is over: the software is kept. Where it has failed, does not return."""
        device = self._device
        now = log.uptime_ms()
        if device.online and (self._asked is None or now - self._asked >= _ASK_MS):
            self._asked = now
            if not device.acked:
                self._say()
            elif self._healthy():
                return self._keep()
        if now >= slots.APP_TRIAL_S * 1000:
            self._fail(slots.NOT_HEALTHY if device.acked else slots.NO_CONNECTION)
        return False

    def _say(self):
        """For software that has nothing to say yet: an acknowledged message is asked for."""
        if self._sent or self._device.waiting():
            return
        try:
            self._device.send({"outpost": {"trial": self._trial}}, durable=False)
            self._sent = True
        except (OutpostError, MemoryError) as e:
            log.say("update", "the trial's message was not taken: %s" % e)

    def _healthy(self):
        check = self._device.health
        if check is None:
            return True
        try:
            answer = check()
            if answer is True:
                return True
            said = "answers %s" % type(answer).__name__ if answer is not False else "says no"
        except Exception as e:
            said = "raised %s" % type(e).__name__
        if said != self._said:
            self._said = said
            log.say("update", "the health check %s: it is asked again" % said)
        return False

    def _keep(self):
        nvs, trial = self._nvs, self._trial
        try:
            if trial >= FIRMWARE:
                import esp32

                esp32.Partition.mark_app_valid_cancel_rollback()
                version = _number(nvs, slots.NVS_FIRMWARE_VERSION)
                nvs.set_i32(slots.NVS_FIRMWARE_TOP, version)
                _outcome(nvs, FIRMWARE + slots.KEPT, version)
            else:
                nvs.set_i32(slots.NVS_APP_CURRENT, trial)  # the moment
                version = _number(nvs, slots.NVS_APP_SLOTS[trial])
                nvs.set_i32(slots.NVS_APP_TOP, version)
                _outcome(nvs, slots.KEPT, version)
            _erase(nvs, slots.NVS_APP_TRIAL)
        except OSError as e:
            log.say("update", "the trial cannot be ended now (%s): it is tried again" % e)
            return False
        if trial < FIRMWARE:
            _unstage("software")
        log.say("update", "%s works: it is kept" % self._name())
        return True

    def _fail(self, outcome):
        import machine

        log.say("update", "%s: %s" % (self._name(), slots.APP_OUTCOMES[outcome]))
        nvs, trial = self._nvs, self._trial
        try:
            if trial < FIRMWARE:
                _outcome(nvs, outcome, _number(nvs, slots.NVS_APP_SLOTS[trial]))
                _erase(nvs, slots.NVS_APP_TRIAL)
            # A firmware that is not marked as valid is not started again by the bootloader.
        except OSError:
            pass  # boot.py counts the starts: it ends there
        try:
            self._device.close()
        except OutpostError:
            pass
        gc.collect()
        machine.reset()


def _outcome(nvs, outcome, version):
    nvs.set_i32(slots.NVS_APP_LAST, version)
    nvs.set_i32(slots.NVS_APP_OUTCOME, outcome)
    nvs.commit()


def _unstage(kind):
    """A power cut may have left the package where it came in: the next one wants the room."""
    import os

    for end in ("bin", "txt"):
        try:
            os.remove("%s/%s.%s" % (agreed.STAGE_PATH, kind, end))
        except OSError:
            pass


def _number(nvs, name):
    try:
        return nvs.get_i32(name)
    except OSError:
        return -1


def _erase(nvs, name):
    try:
        nvs.erase_key(name)
    except OSError as e:
        if number(e) != -0x1102:
            raise
    nvs.commit()
