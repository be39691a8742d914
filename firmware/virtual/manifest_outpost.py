# ruff: noqa: F821
# Our firmware: what a stock board has, and the device library.
#
# Owns nothing but the list.
include("manifest_common.py")
freeze("rescue")
package("outpost", base_path="../../lib")
