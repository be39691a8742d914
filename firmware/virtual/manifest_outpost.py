# ruff: noqa: F821
# Our firmware: what a stock board has, the device library, and what a board needs that cannot
# read its file system: rescuefs.py, and this repository's boot.py, which build.py copies to there.
#
# Owns nothing but the list.
include("manifest_common.py")
freeze("rescue")
freeze("../../build/micropython/rescue", "rescueboot.py")
package("outpost", base_path="../../lib")
