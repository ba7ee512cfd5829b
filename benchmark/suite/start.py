"""One cold start: pull an image on an empty node, run it, and say when what happened and what it cost."""

import http.client
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass

from .node import Node
from .site import Failure, drop_caches, wait_for

# Seconds that a container may need to start, or to be ready, and seconds for one request.
LIMIT, REQUEST = 300, 5


@dataclass(frozen=True)
class Workload:
    name: str
    title: str
    # Name of the image in `images`, and the command that prints READY or DONE; none if only the start counts.
    image: str
    command: tuple
    # Address below http://127.0.0.1 that answers 200 when the program is ready, instead of a line.
    http: str = ""
    # Containers that start at once after the pull, and whether they go on running.
    count: int = 1
    sleeps: bool = False


def cold_start(site, peer, workload, reference, config=None, watch=None):
    """Returns the figures of one run: when the pull began, seconds since then, bytes, CPU seconds, MiB.

    `watch` makes a context manager of the node. It lasts from before the pull until the image is complete."""
    with Node(site, peer, config) as node:
        with watch(node) if watch else nullcontext():
            drop_caches()
            before = usage(node)
            load = os.getloadavg()[0]
            began = time.time()
            node.pull(reference)
            pulled = time.time()
            containers = [container(node, workload, reference) for _ in range(workload.count)]
            started = max(each.wait("the start", each.started, LIMIT) for each in containers)
            ready = None if workload.sleeps else answers(workload, containers)
            used = {"ready": usage(node)}
            complete = completion(node, pulled)
            if complete:
                used["end"] = usage(node)
        figures = {"began": began, "pull": pulled - began, "started": started - began}
        if ready:
            figures["ready"] = ready - began
        if complete:
            figures["complete"] = complete - began
        for each in containers:
            each.stop()
        # The link writes its counter a few times per tenth of a second.
        time.sleep(0.05)
        wire = site.wire()
        figures["wire"] = wire.between(began, ready or started)
        figures["wire_total"] = wire.between(began, time.time())
        figures["load"] = load
        for moment, costs in used.items():
            for who, cost in costs.items():
                figures[f"cpu_{who}_{moment}"] = cost.since(before[who]).cpu
                figures[f"peak_{who}_{moment}"] = cost.peak
        return {key: round(value, 3) for key, value in figures.items()}


def container(node, workload, reference):
    return node.container(reference, workload.command, ("--net-host",) if workload.http else ())


def usage(node):
    found = {"containerd": node.containerd.usage()}
    if node.snapshotter:
        found["snapshotter"] = node.snapshotter.usage()
    return found


def answers(workload, containers):
    """The time at which all containers are ready."""
    if workload.http:
        return max(each.wait("an HTTP answer", lambda: fetch(workload.http), LIMIT) for each in containers)
    return max(each.wait("READY", each.said_ready, LIMIT) for each in containers)


def fetch(address):
    port, _, path = address.partition("/")
    client = http.client.HTTPConnection("127.0.0.1", int(port), timeout=REQUEST)
    try:
        client.request("GET", "/" + path)
        return time.time() if client.getresponse().status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        client.close()


def completion(node, pulled):
    """Waits until the whole image is on disk, and returns the time at which it was. None if that is not known: the reference
    implementation does not say it."""
    if not node.snapshotter:
        return pulled
    if node.peer.daemon != "ours":
        return None
    try:
        wait_for("the rest of the image", node.complete, 120)
    except Failure:
        return None
    return max(pulled, node.completed() or pulled)
