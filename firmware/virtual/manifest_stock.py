# ruff: noqa: F821
# A stock board: no library frozen, as it comes from MicroPython's release images.
#
# Owns nothing but the list.
include("manifest_common.py")
