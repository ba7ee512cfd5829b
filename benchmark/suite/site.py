"""Where the suite runs: folders, the registry, the shaped link, and commands.

`benchmark/run suite` starts the registry and the link and passes their ports in the environment.
"""

import bisect
import itertools
import os
import subprocess
import time

HOST = "registry.soci.test"


class Failure(Exception):
    """A step did not succeed. The text says which one and what it printed."""


# What the failure of one start raises. Other starts continue.
FAILURES = (Failure, OSError, subprocess.SubprocessError)


class Site:
    def __init__(self):
        self.run = os.environ["SUITE_RUN"]
        self.root = os.getcwd()
        self.images = os.path.join(self.root, "target/image/suite")
        self.registry = f"{HOST}:{os.environ['SUITE_REGISTRY_PORT']}"
        self.relay = f"{HOST}:{os.environ['SUITE_RELAY_PORT']}"
        # Registry and link, which share the machine with what is measured.
        self.link = [int(pid) for pid in os.environ["SUITE_LINK_PIDS"].split()]
        self.demo = os.environ["SUITE_DEMO_IMAGE"]
        self.igzip = os.environ.get("SUITE_IGZIP", "")
        self.environment = dict(os.environ, SSL_CERT_FILE=os.path.join(self.run, "ca.pem"))
        self.published = set()
        # Numbers for the folders of nodes.
        self.nodes = itertools.count(1)

    def path(self, *parts):
        return os.path.join(self.run, *parts)

    def command(self, *words, timeout=580, environment=None):
        """Runs a command and returns what it prints. Raises Failure with the end of its output."""
        try:
            done = subprocess.run(words, env=environment or self.environment, timeout=timeout, text=True,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except subprocess.TimeoutExpired:
            raise Failure(f"`{' '.join(words)}` did not end within {timeout} s") from None
        except OSError as error:
            raise Failure(f"`{' '.join(words)}` did not start: {error}") from None
        if done.returncode != 0:
            raise Failure(f"`{' '.join(words)}` failed: {done.stdout[-800:].strip()}")
        return done.stdout

    def wire(self):
        """What the link delivered: times and total bytes."""
        return Wire(self.path("wire-" + self.relay.rpartition(":")[2]))


class Wire:
    """Bytes that the link delivered to its clients, over time."""

    def __init__(self, path):
        with open(path) as file:
            rows = [line.split() for line in file if line.endswith("\n")]
        self.times = [float(row[0]) for row in rows]
        self.bytes = [int(row[1]) for row in rows]

    def total(self, when):
        """Bytes delivered until this time."""
        place = bisect.bisect_right(self.times, when)
        return self.bytes[place - 1] if place else 0

    def between(self, begin, end):
        return self.total(end) - self.total(begin)


def wait_for(what, ready, seconds=30, pause=0.02):
    """Waits until ready() is true. Raises Failure after `seconds`."""
    ends = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > ends:
            raise Failure(f"timed out after {seconds} s waiting for {what}")
        time.sleep(pause)


def drop_caches():
    """Drops the page cache, dentries and inodes of the whole machine."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")
