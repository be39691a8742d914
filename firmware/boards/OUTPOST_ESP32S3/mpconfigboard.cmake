set(IDF_TARGET esp32s3)
# Stock's own settings for the USB of this chip, and for memory on the SPI bus where there is some.
set(OUTPOST_STOCK_SDKCONFIG boards/sdkconfig.usb boards/sdkconfig.spiram_sx)
include(${CMAKE_CURRENT_LIST_DIR}/../outpost.cmake)
