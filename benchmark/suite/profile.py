"""What the daemon's CPU time of one cold start is spent on: `perf record` until the image is complete."""

import shutil
import signal
import subprocess
from collections import Counter
from contextlib import contextmanager

from . import recipes, results
from .peers import BY_NAME, INDEXED, PLAIN
from .process import tree
from .publish import publish
from .report import table
from .site import Failure
from .start import cold_start
from .workloads import WORKLOADS

SHOWN = 25


def measure(site, out, _runs):
    """Starts the demo image once while perf samples keeper and worker 997 times a second."""
    if not shutil.which("perf"):
        raise Failure("perf is not installed")
    publish(site, "demo", recipes.layout(site, "demo"), [PLAIN, INDEXED])
    samples = site.path("perf.data")

    @contextmanager
    def watch(node):
        pids = ",".join(map(str, tree(node.snapshotter.process.pid)))
        perf = subprocess.Popen(["perf", "record", "-q", "-e", "cpu-clock", "-F", "997", "-p", pids, "-o", samples],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            perf.send_signal(signal.SIGINT)
            try:
                perf.wait(60)
            finally:
                perf.kill()

    figures = cold_start(site, BY_NAME["lazy"], WORKLOADS["demo"], f"{site.relay}/demo:{INDEXED}", watch=watch)
    printed = site.command("perf", "report", "-i", samples, "--stdio", "-q", "--no-children", "--sort", "dso,symbol",
                           "--percent-limit", "0.3")
    rows = [words for line in printed.splitlines() if len(words := line.split(None, 3)) == 4 and words[0].endswith("%")]
    areas = Counter()
    for row in rows:
        areas[row[1]] += float(row[0].rstrip("%"))
    shown = [[row[0], row[1], f"`{row[3].strip()}`"] for row in rows[:SHOWN]]
    used = next(figures[key] for key in ("cpu_snapshotter_end", "cpu_snapshotter_ready") if key in figures)
    note = (f"The demo image, lazy, one run. CPU of the daemon {used:.2f} s. By program: "
            + ", ".join(f"{name} {share:.0f} %" for name, share in areas.most_common(3)) + ".\n\n")
    results.save(out, "profile", {"title": "profile of the daemon", "table": note + table(["share", "program", "function"], shown)})
