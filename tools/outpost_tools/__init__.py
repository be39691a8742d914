"""Outpost's host side: what makes devices, images and a hub on a desk computer.

It owns nothing on a device but the image it builds. It never imports from lib/outpost, which is
MicroPython and runs on the board.
"""

__version__ = "0.1.0"
