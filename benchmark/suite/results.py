"""Results as JSON: one file per workload, so that parts of the suite can run on their own."""

import json
import os
import platform
import statistics
import time
from datetime import datetime, timezone

from .peers import BASELINE, BY_NAME

LINK = "20 ms round trip, 125 MB/s in total, 90 MB/s per connection"


def machine():
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {platform.release()}"


def save(folder, name, document):
    os.makedirs(folder, exist_ok=True)
    document = {"machine": machine(), "link": LINK, "when": date(time.time())} | document
    with open(os.path.join(folder, f"{name}.json"), "w") as file:
        file.write("{\n" + ",\n".join(f"{json.dumps(key)}: {lines(value)}" for key, value in document.items()) + "\n}\n")


def date(seconds):
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def lines(value):
    """JSON with one line per element of a list."""
    if not isinstance(value, list):
        return json.dumps(value)
    return "[\n" + ",\n".join(json.dumps(element) for element in value) + "\n]"


def read(folder, name):
    """The results of one workload. None if there are none."""
    try:
        with open(os.path.join(folder, f"{name}.json")) as file:
            return json.load(file)
    except OSError:
        return None


def merge(old, new, peers):
    """The new results of some peers with the old ones of the others, if image and machine are the same."""
    if not old or old.get("image") != new["image"] or old.get("machine") != machine():
        return new
    order = list(BY_NAME)
    runs = [run for run in old["runs"] if run["peer"] not in peers] + new["runs"]
    kept = {key: {peer: why for peer, why in old[key].items() if peer not in peers} | new[key] for key in ("failures", "absent")}
    return new | kept | {"runs": sorted(runs, key=lambda run: order.index(run["peer"]))}


def load(folder):
    """All results of a folder by name."""
    found = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".json"):
            name = name.removesuffix(".json")
            found[name] = read(folder, name)
    return found


class Runs:
    """The runs of one workload, by peer."""

    def __init__(self, document):
        self.runs = document["runs"]
        self.failures = document.get("failures", {})

    def peers(self):
        """The peers that ran at least once."""
        return list(dict.fromkeys(run["peer"] for run in self.runs))

    def dates(self):
        """When the first and the last run began. Empty if that is not known."""
        began = [run["began"] for run in self.runs if "began" in run]
        first_and_last = [date(began) for began in (min(began), max(began))] if began else []
        return " to ".join(dict.fromkeys(first_and_last))

    def raw(self, peer, key):
        return [run[key] for run in self.runs if run["peer"] == peer and key in run]

    def median(self, peer, key):
        """None if no run of the peer has this figure."""
        values = self.raw(peer, key)
        return statistics.median(values) if values else None

    def sums(self, peer, *keys):
        values = [self.median(peer, key) for key in keys]
        return sum(value for value in values if value is not None)

    def baseline(self, key="ready"):
        """The faster one of containerd's ways, and its median. None if none of them ran."""
        known = [(value, peer) for peer in BASELINE if (value := self.median(peer, key)) is not None]
        return min(known)[::-1] if known else (None, None)

    def ratio(self, peer, key="ready"):
        mine, base = self.median(peer, key), self.baseline(key)[1]
        return mine / base if mine is not None and base else None


def stopwatch():
    start = time.monotonic()
    return lambda: time.monotonic() - start
