# The task runner of this repository. Recipes are one line each; longer tasks are scripts in scripts/, which you can also run directly.
PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo

.PHONY: help demo test check e2e kernels systemd soak fuzz bench build static man install deb rpm tools clean

help:     ## list the targets
	@sed -n 's/^\([a-z0-9]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo:     ## pull and run a real image lazily and unpacked, and compare the times (root)
	@scripts/demo

test:     ## run all tests: unit, property, golden and end-to-end (root)
	@scripts/test

check:    ## check formatting and lints; warnings are errors
	@scripts/check

e2e:      ## run only the end-to-end tests; T=name selects tests by name (root)
	@scripts/test --e2e $(T)

kernels:  ## test mount modes on Debian kernels in QEMU (root, minutes per kernel); see docs/kernels.md
	@scripts/kernels

systemd:  ## test the systemd units under systemd in QEMU (root, minutes); see docs/upgrade.md
	@scripts/systemd

soak:     ## run the stress test for two hours; T=seconds sets another duration (root)
	@scripts/soak $(T)

fuzz:     ## run one fuzz target for an hour (nightly, cargo-fuzz), for example T=ztoc_decode
	cd fuzz && $(CARGO) +nightly fuzz run $(T) -- -max_total_time=3600

bench:    ## run all benchmarks (root, long); see benchmark/README.md
	@benchmark/run

build:    ## build release binaries in target/release
	$(CARGO) build --release --locked -p soci-cli -p soci-snapshotter

static:   ## build static programs (musl) in target/static; T="amd64 arm64" selects architectures
	@scripts/static $(T)

man:      build  ## write manual pages for every command to target/man
	target/release/soci man target/man

install:  man  ## install programs, manual pages and the udev rule below $(DESTDIR)$(PREFIX)
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin target/release/soci target/release/soci-snapshotter-grpc
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/man/man1 target/man/*.1
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/lib/udev/rules.d packaging/udev/*.rules

deb:      build  ## build a Debian package in target/packages
	@scripts/package deb

rpm:      build  ## build an RPM package in target/packages (needs rpmbuild)
	@scripts/package rpm

tools:    ## download containerd, registry, crane and erofs-utils to target/tools (root)
	@scripts/tools

clean:    ## delete target/
	rm -rf target
