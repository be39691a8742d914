# ruff: noqa: F821
# What every board of ours has frozen in, as a stock ESP32 has it.
#
# Owns the list for both legs. Never freezes lib/outpost: manifest_outpost.py does.
freeze("modules")
include("$(MPY_DIR)/extmod/asyncio")
freeze("../../build/micropython/umqtt", "umqtt/simple.py")
