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

# How `make test` calls pytest.
PYTEST_ARGS ?= -n 8 --dist worksteal

# Debian's packages, by what needs them.
APT_BUILD := gcc-multilib make xz-utils bzip2 ca-certificates
APT_TEST := mosquitto nats-server rabbitmq-server haproxy openssl iproute2 nmap sslscan softhsm2 strace

.DELETE_ON_ERROR:
.PHONY: help run test test-all lint bench micropython roots clean

help:
	@echo "make run          a device boots from its flash image, connects and sends"
	@echo "                  RUN_FOR=20 stops by itself; DEVICES=5; MFL=512|1024|2048|4096|none"
	@echo "make test         the test suite; make test-all adds what takes long,"
	@echo "                  and writes docs/faults.md"
	@echo "make lint         ruff, and the C with all warnings as errors"
	@echo "make bench        measures the budgets and writes docs/numbers.md"
	@echo "make micropython  builds MicroPython with our C module into build/bin"
	@echo "make roots        takes the trust roots from certifi into certs/"
	@echo "make clean        removes build/"

run: micropython
	@$(BIN)/outpost demo --devices '$(DEVICES)' --mfl '$(MFL)' --leg '$(LEG)' $(if $(RUN_FOR),--run-for '$(RUN_FOR)')

test: micropython $(BUILD)/.apt-test
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: micropython $(BUILD)/.apt-test
	@$(BIN)/python -m pytest -m "exhaustive or not exhaustive" --faults=docs/faults.md $(PYTEST_ARGS)

lint: $(VENV)/.ready micropython
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/python firmware/build.py --lint

bench: micropython $(BUILD)/.apt-test
	@PYTHONPATH=tests $(BIN)/python -m bench

micropython: $(VENV)/.ready $(BUILD)/.apt-build
	@$(BIN)/python firmware/build.py

roots: $(VENV)/.ready
	@$(BIN)/outpost roots

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
