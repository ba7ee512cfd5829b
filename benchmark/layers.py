"""Measures the cost of many layers, for `benchmark/run layers`.

usage: layers.py image FOLDER COUNT    writes an image of COUNT layers of 1 MB as an OCI layout
       layers.py watch STATE OUT       logs when each loop device below STATE is moved to `data`,
                                       until it is killed
       layers.py lag LOG STATE MOVES   prints the time from completion of a layer to that move
       layers.py process PID NAME      prints memory usage and threads
"""

import glob, gzip, hashlib, io, json, os, sys, tarfile, time
from collections import Counter
from datetime import datetime


def write_image(folder, layers, level=6):
    """Writes an OCI layout of an image whose layers contain these (name, content) pairs."""
    blobs = os.path.join(folder, "blobs/sha256")
    os.makedirs(blobs)

    def put(kind, data):
        name = hashlib.sha256(data).hexdigest()
        with open(os.path.join(blobs, name), "wb") as file:
            file.write(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{name}", "size": len(data)}

    written, diffs = [], []
    for files in layers:
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in files:
                info = tarfile.TarInfo(name)
                info.size, info.mtime, info.mode = len(data), 1_700_000_000, 0o644
                tar.addfile(info, io.BytesIO(data))
        diffs.append("sha256:" + hashlib.sha256(raw.getbuffer()).hexdigest())
        written.append(put("layer.v1.tar+gzip", gzip.compress(raw.getbuffer(), level, mtime=0)))
    config = put("config.v1+json", json.dumps({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diffs}}).encode())
    manifest = put("manifest.v1+json", json.dumps({"schemaVersion": 2, "config": config, "layers": written,
        "mediaType": "application/vnd.oci.image.manifest.v1+json"}).encode())
    manifest["platform"] = {"architecture": "amd64", "os": "linux"}
    with open(os.path.join(folder, "index.json"), "w") as file:
        json.dump({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                   "manifests": [manifest]}, file)
    with open(os.path.join(folder, "oci-layout"), "w") as file:
        file.write('{"imageLayoutVersion":"1.0.0"}')


def image(folder, count):
    part = lambda n, part: (f"srv/{n}/{part}", hashlib.shake_128(b"%d %d" % (n, part)).digest(131072))
    write_image(folder, ([part(n, p) for p in range(8)] for n in range(int(count))))


def watch(state, out):
    lazy = set()
    with open(out, "w", buffering=1) as moves:
        while True:
            for name in glob.glob("/sys/block/loop*/loop/backing_file"):
                try:
                    with open(name) as file:
                        backing = file.read().strip()
                except OSError:
                    continue
                if not backing.startswith(state):
                    continue
                if backing.endswith("/data"):
                    if name in lazy:
                        lazy.remove(name)
                        moves.write(f"{backing.split('/')[-2]} {time.time()}\n")
                elif "/layers-" not in backing:
                    lazy.add(name)
            time.sleep(0.001)


def lag(log, state, moves):
    numbers = {}
    for sources in glob.glob(f"{state}/layers-*/*/sources") + glob.glob(f"{state}/*/layers-*/*/sources"):
        with open(sources, "rb") as file:
            numbers[sources.split("/")[-2]] = file.read().decode("latin-1")
    complete = {}
    with open(log) as lines:
        for line in lines:
            if "layer is complete" in line:
                said = json.loads(line)
                at = datetime.fromisoformat(said["time"].split(".")[0] + "+00:00").timestamp()
                complete[said["layer"].split(":")[1]] = at + float("0." + said["time"].split(".")[1][:-1])
    lags = []
    with open(moves) as lines:
        for number, at in (line.split() for line in lines):
            lags += [float(at) - when for digest, when in complete.items() if digest in numbers.get(number, "")]
    lags.sort()
    if not lags:
        sys.exit("no layer was seen to move")
    print(f"{len(complete)} layers complete, {len(lags)} seen to move; from complete to `data`, ms: "
          f"median {lags[len(lags) // 2] * 1000:.1f}, 95 % {lags[len(lags) * 95 // 100] * 1000:.1f}, "
          f"longest {lags[-1] * 1000:.1f}")


def process(pid, name):
    with open(f"/proc/{pid}/status") as file:
        status = dict(line.rstrip("\n").split(":", 1) for line in file)
    tasks = Counter()
    for comm in glob.glob(f"/proc/{pid}/task/*/comm"):
        with open(comm) as file:
            tasks[file.read().strip()] += 1
    threads = ", ".join(f"{count} {name}" if count > 1 else name for name, count in sorted(tasks.items()))
    mib = lambda key: int(status[key].split()[0]) / 1024
    print(f"{name}: RSS {mib('VmRSS'):.1f} MiB, of it anonymous {mib('RssAnon'):.1f}, at its peak {mib('VmHWM'):.1f}; "
          f"{sum(tasks.values())} threads: {threads}")


if __name__ == "__main__":
    {"image": image, "watch": watch, "lag": lag, "process": process}[sys.argv[1]](*sys.argv[2:])
