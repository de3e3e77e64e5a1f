# What a person types. Each target sets up what it needs (tools/setup installs only what is missing)
# and does one thing. The product's own command is .venv/bin/openclaw.
.PHONY: demo test build debug bench lint deb image boot vm-test vagrant-host clean help
.DEFAULT_GOAL := help

python := .venv/bin/python
ninja := .venv/bin/ninja-in-turn
sudo := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

help:
	@echo "make demo      install what is missing, build, and run the main job on a real capture"
	@echo "make test      the whole test suite"
	@echo "make build     release build"
	@echo "make debug     build with ledger assertions and sanitizers, in build/debug"
	@echo "make bench     the benchmarks, against the peers that are installed"
	@echo "make lint      ruff, mypy, cython-lint, clang-format, shellcheck, ansible-lint"
	@echo "make deb       the package, for SUITE=bookworm or trixie"
	@echo "make image     the bootable image          make vm-test   boot it, test inside"
	@echo "make boot      boot it, open a shell       make vagrant-host   prepare for vagrant up"

build:
	@tools/setup build
	@$(ninja) -C build/release --quiet

demo:
	@tools/setup build
	@$(ninja) -C build/release --quiet
	@$(sudo) .venv/bin/openclaw demo

test:
	@tools/setup
	@$(ninja) -C build/release --quiet
	@$(sudo) $(python) -m pytest -q $(ARGS)

# tools/debug COMMAND... runs something inside this build; it explains itself.
debug:
	@tools/setup
	@tools/debug

BENCH ?= all
bench:
	@tools/setup
	@$(ninja) -C build/release --quiet
	@$(sudo) .venv/bin/openclaw bench $(BENCH) --load afxdp --load kernel --page BENCHMARKS.md $(ARGS)

lint:
	@tools/setup
	@tools/lint

deb:
	@tools/setup image
	@$(sudo) images/deb/build $(SUITE)

image vm-test boot:
	@$(sudo) env FULL="$(FULL)" images/$@ $(ARGS)

vagrant-host:
	@$(sudo) images/vagrant-host

clean:
	rm -rf build .venv
