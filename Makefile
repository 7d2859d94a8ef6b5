# `make help` tells what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X catalog-backup/shared/exit.Version=$(VERSION)
# How many packages are tested at once.
TEST_P ?= 2
TEST_TIMEOUT ?= 14m
TEST_FLAGS ?=
GOTEST := go tool gotestsum --format standard-quiet
# The race detector costs five times the time: the packages whose tests are long for other reasons are left out.
RACE_LEFT_OUT ?= /worker/e2e$$
RACE_TIMEOUT ?= 20m

.PHONY: help build demo test race slowest bench lint fmt clean install compose-test

help: ## this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/producer and bin/worker
	@mkdir -p bin
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./producer ./worker

demo: ## a backup and a restore from beginning to end, on real servers (DEMO_DIR=…, KEEP=1, KAFKA=real)
	@.ci/install demo
	@.ci/demo

test: ## all tests, on real servers (TEST_FLAGS='-run …', TEST_P=…)
	@.ci/install test
	@.ci/kafka >/dev/null
	@mkdir -p .cache
	$(GOTEST) --jsonfile .cache/test.json -- -count=1 -p $(TEST_P) -timeout $(TEST_TIMEOUT) $(TEST_FLAGS) ./...

compose-test: ## docker-compose.yml on a real Docker engine: backup, restore, a worker killed (starts an engine where none answers)
	@.ci/compose

race: ## the tests under the race detector, without the longest
	@.ci/install test
	@.ci/kafka >/dev/null
	$(GOTEST) -- -race -count=1 -p $(TEST_P) -timeout $(RACE_TIMEOUT) $(TEST_FLAGS) $$(go list ./... | grep -vE '$(RACE_LEFT_OUT)')

slowest: ## the ten slowest tests of the last make test
	@go tool gotestsum tool slowest --num 10 --jsonfile .cache/test.json

bench: ## all measurements against other ways to back up (SIZE=…)
	@.ci/install test
	@.ci/bench all

bench-poll: ## what idle workers cost, and what a longer queue.poll costs a run
	@go run ./worker/bench/poll

bench-%: ## one of them: postgres, files, eventbus or restore
	@.ci/install test
	@.ci/bench $*

screenshots: ## the dashboard's pictures in docs/images, from the browser's test
	@.ci/install test
	@mkdir -p docs/images
	DASHBOARD_SCREENSHOTS=$(CURDIR)/docs/images go test -count=1 -run 'TestInTheBrowser/(looks|queues)' ./producer/dashboard

lint: ## go vet, staticcheck and the form of the sources
	@bad=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$bad" ] || { echo "not gofmt's form (make fmt mends it):"; echo "$$bad"; exit 1; }
	go vet ./...
	go tool staticcheck ./...

fmt: ## bring the sources into gofmt's form
	gofmt -w $$(git ls-files '*.go')

install: ## what the tests need and is missing (apt-get)
	@.ci/install test

clean: ## remove what was built here
	rm -rf bin .cache

.PHONY: soak traps
soak: ## many runs while workers, disks, Redis and clocks break at random (SOAK_RUNS=300, SOAK_DISK=…, SOAK_SEED=…)
	SOAK_RUNS=$${SOAK_RUNS:-300} go test -count=1 -timeout 60m -v -run '^TestSoak$$' ./worker/pipeline

traps: ## shows that the tests of asynq's traps fail without their remedies
	@.ci/traps
