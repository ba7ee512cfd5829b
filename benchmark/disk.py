"""Measures latency on a disk with limited throughput, for `benchmark/run disk`.

usage: disk.py image FOLDER MIB           writes an image of one layer of MIB as an OCI layout; it
                                          compresses to half of that
       disk.py attach FILE MB DIRTY-MIB   attaches FILE as a disk limited to MB per second and
                                          DIRTY-MIB of dirty pages; prints the device, the
                                          cgroup.procs file to join, and the kind of limit
       disk.py detach DEVICE              removes the disk and its limits
       disk.py probe TREE READS OUT       reads missing files of TREE, with concurrent fsyncs
       disk.py report OFF ON              compares `probe` results without and with the background
"""

import fcntl, glob, gzip, json, os, random, subprocess, sys, time
from layers import write_image

V1 = "/sys/fs/cgroup/blkio"
V2 = "/sys/fs/cgroup/soci-benchmark"
LOOP_CTL_REMOVE = 0x4C81
FILE = 1 << 20


def image(folder, mebibytes):
    """Writes files of 1 MiB in which each 512 bytes occur twice: cheap to inflate, and compressed to half."""
    rng = random.Random(9)

    def content():
        parts = (rng.randbytes(512) for _ in range(FILE // 1024))
        return b"".join(part + part for part in parts)

    write_image(folder, [[(f"srv/{n:05}", content()) for n in range(int(mebibytes))]], level=1)


def numbers(device):
    rdev = os.stat(device).st_rdev
    return f"{os.major(rdev)}:{os.minor(rdev)}"


def put(path, text):
    with open(path, "w") as file:
        file.write(text)


def controllers():
    """Returns the controllers of cgroup v2. If `io` is among them, it is used instead of v1."""
    try:
        with open("/sys/fs/cgroup/cgroup.controllers") as file:
            return file.read().split()
    except OSError:
        return []


def attach(file, megabytes, dirty):
    # An unusual number, so that a leftover limit affects no other device.
    device = next(name for name in (f"/dev/loop{n}" for n in range(4096, 8192)) if not os.path.exists(name))
    subprocess.run(["losetup", device, file], check=True)
    name, rate = numbers(device), int(megabytes) * 1_000_000
    group = "-"
    if "io" in controllers():
        put("/sys/fs/cgroup/cgroup.subtree_control", "+io +memory")
        os.makedirs(V2, exist_ok=True)
        put(f"{V2}/io.max", f"{name} rbps={rate} wbps={rate}")
        how, group = "io.max of a cgroup (v2)", f"{V2}/cgroup.procs"
    elif os.path.exists(f"{V1}/blkio.throttle.write_bps_device"):
        for what in ("read", "write"):
            put(f"{V1}/blkio.throttle.{what}_bps_device", f"{name} {rate}")
        # Writeback runs in kernel threads, which are in the root cgroup.
        how = "blkio.throttle of the root cgroup (v1)"
    else:
        detach(device)
        sys.exit("no cgroup here limits a disk: neither io (v2) nor blkio (v1)")
    # Like on a small node, where the dirty limits are a fraction of memory.
    put(f"/sys/class/bdi/{name}/max_bytes", str(int(dirty) << 20))
    put(f"/sys/class/bdi/{name}/strict_limit", "1")
    print(device, group, how)


def detach(device):
    name = numbers(device)
    if os.path.exists(f"{V1}/blkio.throttle.write_bps_device"):
        for what in ("read", "write"):
            put(f"{V1}/blkio.throttle.{what}_bps_device", f"{name} 0")
    subprocess.run(["losetup", "-d", device], check=False)
    if os.path.isdir(V2):
        os.rmdir(V2)
    for _ in range(100):
        try:
            with open("/dev/loop-control") as control:
                return fcntl.ioctl(control, LOOP_CTL_REMOVE, int(device.removeprefix("/dev/loop")))
        except OSError:
            time.sleep(0.1)
    sys.exit(f"{device} stays")


def sync_now_and_then(tree, stop):
    """Appends 16 KiB and syncs, like a small database. Returns the seconds that each sync took."""
    took, block = [], os.urandom(16 << 10)
    with open(os.path.join(tree, "journal"), "wb", buffering=0) as file:
        while not os.path.exists(stop):
            began = time.monotonic()
            file.write(block)
            os.fsync(file.fileno())
            took.append(time.monotonic() - began)
            time.sleep(0.05)
    return took


def probe(tree, reads, out):
    stop, syncs = out + ".stop", out + ".syncs"
    child = os.fork()
    if child == 0:
        put(syncs, json.dumps(sync_now_and_then(tree, stop)))
        os._exit(0)
    took, block = [], bytearray(4096)
    names = sorted(glob.glob(os.path.join(tree, "srv/*")), reverse=True)
    # Start at the end, which the background reaches last. Skip neighbors, which may be prefetched.
    for name in names[1::2][:int(reads)]:
        fd = os.open(name, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        began = time.monotonic()
        os.preadv(fd, [block], FILE // 2)
        took.append(time.monotonic() - began)
        os.close(fd)
        time.sleep(0.05)
    put(stop, "")
    os.waitpid(child, 0)
    with open(syncs) as file:
        synced = json.load(file)
    put(out, json.dumps({"on-demand read": took, "fsync": synced}))
    for kind, all in (("reads", took), ("fsyncs", synced)):
        print(f"{os.path.basename(out)}: {len(all)} {kind}, ms: " + " ".join(f"{one * 1000:.1f}" for one in sorted(all)[-12:]))


def report(off, on):
    def load(prefix):
        merged = {}
        for name in sorted(glob.glob(prefix + "-[0-9]*")):
            if name.endswith((".stop", ".syncs")):
                continue
            with open(name) as file:
                for kind, took in json.load(file).items():
                    merged.setdefault(kind, []).extend(took)
        return {kind: sorted(took) for kind, took in merged.items()}

    off, on = load(off), load(on)
    for kind in off:
        at = lambda all, part: all[kind][min(len(all[kind]) - 1, int(len(all[kind]) * part))] * 1000
        row = " ".join(f"{name} {at(off, part):.1f} {at(on, part):.1f} ratio {at(on, part) / at(off, part):.2f};"
                       for name, part in (("p50", 0.5), ("p99", 0.99)))
        print(f"{kind}, ms, background off and on: {row} longest {off[kind][-1] * 1000:.1f} {on[kind][-1] * 1000:.1f};"
              f" {len(off[kind])} and {len(on[kind])} of them")


{"image": image, "attach": attach, "detach": detach, "probe": probe, "report": report}[sys.argv[1]](*sys.argv[2:])
