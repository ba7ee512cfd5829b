"""How the cost of a start grows with layers, files and containers."""

import statistics

from . import images, recipes, results
from .peers import BY_NAME, INDEXED, PLAIN
from .publish import publish
from .report import number, pair, table
from .site import FAILURES
from .start import Workload, cold_start

PEERS = ("tuned", "lazy", "parallel")
HELLO = ("sh", "-c", "echo READY")
PYTHON_HELLO = ("python3", "-c", "print('READY', flush=True)")


def layers(site, out, runs):
    points = [(count, Workload(f"layers{count}", "", f"layers{count}", HELLO)) for count in (1, 10, 40, 120)]
    measure(site, out, "layers", "layers: images of N layers of 1 MB", "layers", points, runs)


def files(site, out, runs):
    points = [(count, Workload(f"files{name}", "", f"files{name}", HELLO))
              for count, name in (("1,000", "1k"), ("100,000", "100k"), ("1,000,000", "1m"))]
    measure(site, out, "files", "files: one layer of N small files", "files", points, min(runs, 2))


def containers(site, out, runs):
    points = [(count, Workload(f"containers{count}", "", "demo", PYTHON_HELLO, count=count)) for count in (1, 10, 50)]
    measure(site, out, "containers", "containers: N containers of the demo image at once, until the last one is ready", "containers", points,
            runs)


def measure(site, out, name, title, what, points, runs):
    """Starts each point with each peer in turn, and saves one table."""
    raw, rows = [], []
    for count, workload in points:
        try:
            layout = recipes.layout(site, workload.image)
            peers = [BY_NAME[peer] for peer in PEERS if not BY_NAME[peer].lacks(site)]
            publish(site, workload.image, layout, [PLAIN, INDEXED])
        except FAILURES as failure:
            print(f"{count} {what}: {failure}", flush=True)
            rows.append([f"{count}", "", "every peer", *row([], 0)])
            continue
        megabytes = images.size(layout)[0] / 1e6
        found = {}
        for _ in range(runs):
            for peer in peers:
                try:
                    figures = cold_start(site, peer, workload, f"{site.relay}/{workload.image}:{peer.tag}")
                except FAILURES as failure:
                    print(f"{count} {what}, {peer.name}: {failure}", flush=True)
                    found.setdefault(peer, []).append(None)
                    continue
                print(f"{count} {what}, {peer.name}: pull {figures['pull']}, READY {figures['ready']}", flush=True)
                found.setdefault(peer, []).append(figures)
                raw.append({"point": count, "peer": peer.name, **figures})
        rows += [[f"{count}", f"{megabytes:.1f}", peer.title, *row([run for run in all_runs if run], len(all_runs))]
                 for peer, all_runs in found.items()]
    head = [what, "MB", "", "pull", "READY", "CPU s: daemon, containerd", "peak MiB: daemon, containerd", "READY of each run"]
    results.save(out, f"scale-{name}", {"title": title, "table": table(head, rows), "raw": raw})


def row(runs, asked):
    def median(key):
        values = [run[key] for run in runs if key in run]
        return statistics.median(values) if values else None

    if not runs:
        return ["failed", "", "", "", ""]
    said = " ".join(number(run["ready"]) for run in runs) + ("" if len(runs) == asked else f" ({asked - len(runs)} failed)")
    return [number(median("pull")), number(median("ready")),
            pair(median("cpu_snapshotter_end"), median("cpu_containerd_end")),
            pair(median("peak_snapshotter_end"), median("peak_containerd_end"), digits=0), said]


PARTS = {"layers": layers, "files": files, "containers": containers}
