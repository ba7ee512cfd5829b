"""One cold start: pull an image on an empty node, run it, and say when what happened and what it cost."""

import http.client
import os
import time
from dataclasses import dataclass

from .node import Node
from .site import Failure, drop_caches, wait_for

# Seconds that a container may need to start, or to be ready.
LIMIT = 300


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
    """Returns the figures of one run: seconds since the pull began, bytes, CPU seconds, MiB.

    `watch` is called with the node after its start, and its result with the figures after READY."""
    with Node(site, peer, config) as node:
        end_watch = watch(node) if watch else None
        drop_caches()
        before = usage(node)
        load = os.getloadavg()[0]
        began = time.time()
        node.pull(reference)
        pulled = time.time()
        containers = [container(node, workload, reference) for _ in range(workload.count)]
        started = max(each.wait("the start", each.started, LIMIT) for each in containers)
        ready = None if workload.sleeps else answers(workload, containers)
        at_ready = usage(node)
        complete, at_end = completion(node)
        figures = {"pull": pulled - began, "started": started - began}
        if ready:
            figures["ready"] = ready - began
        if complete:
            figures["complete"] = complete - began
        if end_watch:
            end_watch(figures | {"began": began})
        for each in containers:
            each.stop()
        # The link writes its counter a few times per tenth of a second.
        time.sleep(0.05)
        wire = site.wire()
        figures["wire"] = wire.between(began, ready or started)
        figures["wire_total"] = wire.between(began, time.time())
        figures["load"] = load
        for moment, used in (("ready", at_ready), ("end", at_end)):
            for who in used:
                figures[f"cpu_{who}_{moment}"] = used[who].since(before[who]).cpu
                figures[f"peak_{who}_{moment}"] = used[who].peak
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
    client = http.client.HTTPConnection("127.0.0.1", int(port), timeout=LIMIT)
    try:
        client.request("GET", "/" + path)
        return time.time() if client.getresponse().status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        client.close()


def completion(node):
    """When the whole image is on disk, and the usage then. Not known for the reference implementation."""
    if node.peer.daemon != "ours":
        return None, usage(node)
    try:
        wait_for("the rest of the image", node.complete, 120)
    except Failure:
        return None, usage(node)
    return time.time(), usage(node)
