"""Outpost: a device that only ever calls home. See Device."""

from .device import Device
from .errors import OutpostError

__version__ = "0.1.0"
__all__ = ("Device", "OutpostError")
