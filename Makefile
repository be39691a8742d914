# Outpost. `make run` and `make test` do all their set-up themselves; what they
# make is kept in build/, so the second time is quick. `make help` lists the rest.

PYTHON ?= python3
BUILD := build
VENV := $(BUILD)/venv
BIN := $(VENV)/bin

# What `make run` shows: how long (seconds, empty = until Ctrl-C), how many
# devices, which record size to ask for, on which build of the virtual board.
RUN_FOR ?=
DEVICES ?= 1
MFL ?= auto
LEG ?= outpost32

# A board on the desk: its port (empty: the one that is plugged in), which device it is to be, its
# image, ERASE=1 to begin anew, YES=1 to be asked nothing, and the folder with your main.py.
PORT ?=
DEVICE ?=
IMAGE ?= $(DEVICE).bin
ERASE ?=
YES ?=
APP ?=

# How `make test` calls pytest.
PYTEST_ARGS ?= -n 8 --dist worksteal
# What Python compiles is kept, or each of the eight, and each tool they start, does it again: 15
# seconds of a processor for the tests alone. The first look at the tests fills the cache.
PYTEST := PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX='$(CURDIR)/$(BUILD)/pycache' $(BIN)/python -m pytest

# What `make firmware` builds for, and from what: MICROPYTHON_DIR and IDF_PATH are yours.
BOARD ?= OUTPOST_ESP32
LAYOUT ?= single
FLASH ?= 4
ENCRYPTED ?=

# Debian's packages, by what needs them.
APT_BUILD := gcc-multilib make xz-utils bzip2 ca-certificates
APT_TEST := mosquitto nats-server rabbitmq-server haproxy openssl iproute2 nmap sslscan softhsm2 strace \
	cmake ninja-build gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf

.DELETE_ON_ERROR:
.PHONY: help run test test-all lint bench micropython roots flash deploy console erase clean \
	firmware firmware-check drill

help:
	@echo "make run          a device boots from its flash image, connects and sends"
	@echo "                  RUN_FOR=20 stops by itself; DEVICES=5; MFL=512|1024|2048|4096|none"
	@echo "make drill        a fleet of ten goes over to another root; a bad bundle; the emergency"
	@echo "make test         the test suite; make test-all adds what takes long,"
	@echo "                  and writes docs/faults.md"
	@echo "make lint         ruff, and the C with all warnings as errors"
	@echo "make bench        measures the budgets and writes docs/numbers.md"
	@echo "make micropython  builds MicroPython with our C module into build/bin"
	@echo "make flash        writes IMAGE, or DEVICE.bin, to the board on PORT, and watches it connect;"
	@echo "                  only what changed; ERASE=1 begins anew"
	@echo "make deploy       sends what changed in APP to the running board on PORT"
	@echo "make console      shows what the board on PORT says"
	@echo "make erase        erases the board on PORT: asks first, YES=1 does not"
	@echo "make firmware BOARD=$(BOARD) MICROPYTHON_DIR=... IDF_PATH=..."
	@echo "                  our firmware for a real board; LAYOUT=single|ota FLASH=4|8|16"
	@echo "                  ENCRYPTED=1; make firmware-check: all that needs no ESP-IDF"
	@echo "make roots        takes the trust roots from certifi into certs/"
	@echo "make clean        removes build/"

run: micropython
	@$(BIN)/outpost demo --devices '$(DEVICES)' --mfl '$(MFL)' --leg '$(LEG)' $(if $(RUN_FOR),--run-for '$(RUN_FOR)')

drill: micropython
	@$(BIN)/outpost drill --leg '$(LEG)'

test: micropython $(BUILD)/.apt-test
	@$(PYTEST) --collect-only -qq >$(BUILD)/collected.txt || { cat $(BUILD)/collected.txt; exit 2; }
	@$(PYTEST) $(PYTEST_ARGS)

test-all: micropython $(BUILD)/.apt-test
	@$(PYTEST) -m "exhaustive or not exhaustive" --faults=docs/faults.md $(PYTEST_ARGS)

lint: $(VENV)/.ready micropython
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/python firmware/build.py --lint

bench: micropython $(BUILD)/.apt-test
	@PYTHONPATH=tests $(BIN)/python -m bench

micropython: $(VENV)/.ready $(BUILD)/.apt-build
	@$(BIN)/python firmware/build.py

firmware: $(VENV)/.ready
	@$(BIN)/python firmware/esp32.py --board '$(BOARD)' --layout '$(LAYOUT)' --flash-mib '$(FLASH)' \
		--micropython '$(MICROPYTHON_DIR)' --idf '$(IDF_PATH)' $(if $(ENCRYPTED),--encrypted)

firmware-check: micropython $(BUILD)/.apt-test
	@$(BIN)/python -m pytest $(PYTEST_ARGS) tests/unit/test_esp32_boards.py tests/unit/test_esp32_firmware.py

roots: $(VENV)/.ready
	@$(BIN)/outpost roots

flash: $(VENV)/.ready
	@test -n '$(DEVICE)' || { echo "Say which device: make flash DEVICE=pump-7 PORT=/dev/ttyUSB0"; exit 2; }
	@$(BIN)/outpost flash '$(IMAGE)' --device '$(DEVICE)' $(if $(PORT),--port '$(PORT)') $(if $(ERASE),--erase)

deploy: $(VENV)/.ready
	@$(BIN)/outpost deploy $(if $(APP),'$(APP)') $(if $(DEVICE),--device '$(DEVICE)') $(if $(PORT),--port '$(PORT)')

console: $(VENV)/.ready
	@$(BIN)/outpost console $(if $(PORT),--port '$(PORT)')

erase: $(VENV)/.ready
	@$(BIN)/outpost erase $(if $(PORT),--port '$(PORT)') $(if $(YES),--yes)

$(VENV)/.ready: tools/requirements.txt pyproject.toml $(BUILD)/.apt-python
	@tools/venv.sh $(VENV) "$(PYTHON)"

$(BUILD)/.apt-python:
	@mkdir -p $(BUILD)
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || tools/apt.sh python3-venv
	@touch $@

$(BUILD)/.apt-build:
	@tools/apt.sh $(APT_BUILD)
	@touch $@

$(BUILD)/.apt-test: $(BUILD)/.apt-build
	@tools/apt.sh $(APT_TEST)
	@touch $@

clean:
	rm -rf $(BUILD)
