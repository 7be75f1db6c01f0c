# Everything a person or a CI types. 'make test' and 'make demo' set up what they need themselves.

CARGO ?= cargo
BIG_IMAGE ?= .demo/big
PEERS ?= .demo/peers

.PHONY: help build spank dist test test-gpu test-hpc soak lint demo man peers bench bench-convert bench-launch bench-ranks bench-read bench-startup fuzz big-image check-big-image setup clean-demo

help:
	@echo 'make test             set the machine up, then run all tests'
	@echo 'make test-gpu         on a node with an NVIDIA device: the real driver, nvidia-smi, a CUDA kernel from an image'
	@echo 'make test-hpc         every launcher with every MPI library in an image, 10 minutes and 2 GB of downloads (root)'
	@echo 'make soak             servers killed under load, 2000 launches, memory over time: 10 minutes (root)  [SOAK_MINUTES=2]'
	@echo 'make demo             build an image with an MPI solver, convert it, run it  [IMAGE=docker://... takes yours]'
	@echo 'make build            target/release/hpcrun'
	@echo 'make spank            target/release/libhpcrun_spank.so, for the Slurm that is installed  [SLURM_VERSION=23.11.4 for another]'
	@echo 'make dist             static program, Debian package, RPM, tarball and their checksums, in dist/'
	@echo 'make man              manual pages and shell completions, in target/manual/'
	@echo 'make lint             formatting, clippy, licences and advisories of dependencies'
	@echo 'make bench            measure against peers, 40 minutes; bench-convert, bench-launch, bench-ranks, bench-read,'
	@echo '                      bench-startup: one  [BENCH="--times 3 --strict" for the bars; benches/convert --help says more]'
	@echo 'make check-big-image  convert a 1.7 GB image and compare it entry by entry with umoci (root)'
	@echo 'make fuzz             a bounded run of the randomised tests with fresh seeds'
	@echo 'make clean-demo       remove what demo, bench and check-big-image keep in .demo/'

setup:
	@scripts/setup

build:
	$(CARGO) build --release --locked

# Slurm takes a plugin of its own release only.
spank:
	SLURM_VERSION=$(SLURM_VERSION) $(CARGO) build --release --locked --package hpcrun-spank

dist: setup
	@CARGO='$(CARGO)' scripts/dist/build dist

man:
	$(CARGO) run --quiet --locked --example manual target/manual

# Under nohup an ignored hangup would be ignored by the jobs too, whose signals are tested.
test: setup
	env --default-signal $(CARGO) test --locked

# Fails where there is no device: it says what was not tested rather than nothing.
test-gpu: setup
	$(CARGO) test --locked --test it gpu::a_real_device -- --ignored --nocapture

test-hpc: setup
	$(CARGO) build --locked
	tests/hpc/matrix .demo/hpc

# How long it takes follows from SOAK_MINUTES; a failure prints HPCRUN_SEED, which repeats it.
soak: setup
	$(CARGO) test --locked --test it soak:: -- --ignored --nocapture --test-threads=1

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	@scripts/check-dependencies

demo: setup build
	@scripts/demo $(IMAGE)

big-image: setup
	@scripts/make-big-image $(BIG_IMAGE)

check-big-image: setup build big-image
	@scripts/check-big-image $(BIG_IMAGE)

bench: bench-convert bench-launch bench-ranks bench-read bench-startup

peers: setup
	@scripts/peers $(PEERS)

# What is measured is the program that is shipped.
bench-convert bench-launch bench-ranks bench-read bench-startup: bench-%: setup big-image peers
	@$(CARGO) build --quiet --release --locked --examples
	@program=$$(CARGO='$(CARGO)' scripts/dist/program) && HPCRUN=$$program benches/$* $(BIG_IMAGE) --peers $(PEERS) $(BENCH)

fuzz: setup
	@scripts/fuzz

clean-demo:
	@rm -rf .demo 2>/dev/null || buildah unshare rm -rf .demo
