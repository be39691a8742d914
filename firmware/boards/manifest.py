# ruff: noqa: F821
# What our firmware for real boards has frozen in: the very same as the virtual board's.
#
# Owns nothing but that. So the list is tested with every test of the virtual board; there is no
# WebREPL in it, and the start (_boot, inisetup, flashbdev) is ours and not stock's.
include("../virtual/manifest_outpost.py")
