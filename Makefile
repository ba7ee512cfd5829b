# The only task runner. Recipes are one line; what is longer is a script under scripts/ that also runs alone.
PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo

.PHONY: help demo test check e2e kernels soak fuzz bench build man install tools clean

help:     ## this list
	@sed -n 's/^\([a-z0-9]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo:     ## pulls and runs a real image lazily next to the same image unpacked, and says how long each took
	@scripts/demo

test:     ## the whole suite: unit, property, golden, end to end (root)
	@scripts/test

check:    ## format and lints, warnings denied
	@scripts/check

e2e:      ## only the end-to-end tests; make e2e T=name runs some
	@scripts/test --e2e $(T)

kernels:  ## what Debian's kernels answer, booted in qemu (root, minutes each): docs/kernels.md
	@scripts/kernels

soak:     ## the stress test for two hours; make soak T=seconds takes another time
	@scripts/soak $(T)

fuzz:     ## an hour of one fuzz target (nightly, cargo-fuzz): make fuzz T=ztoc_decode
	cd fuzz && $(CARGO) +nightly fuzz run $(T) -- -max_total_time=3600

bench:    ## the benchmarks of benchmark/README.md, all of them (long)
	@benchmark/run

build:    ## release binaries in target/release
	$(CARGO) build --release --locked -p soci-cli -p soci-snapshotter

man:      build  ## manual pages of every command in target/man
	target/release/soci man target/man

install:  man  ## both programs to $(DESTDIR)$(PREFIX)/bin, their pages to share/man/man1, the udev rule to lib/udev/rules.d
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin target/release/soci target/release/soci-snapshotter-grpc
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/man/man1 target/man/*.1
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/lib/udev/rules.d packaging/udev/*.rules

tools:    ## containerd, registry, crane, erofs-utils under target/tools
	@scripts/tools

clean:    ## everything under target/
	rm -rf target
