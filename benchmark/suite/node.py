"""A node with nothing cached: the snapshotter's daemon, containerd, and containers."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from datetime import datetime, timezone

from .process import Daemon
from .site import Failure, wait_for

ADDRESS = os.environ.get("CONTAINERD_ADDRESS", "/run/containerd/containerd.sock")
SNAPSHOTTER = "/run/containerd/suite.sock"
# Where the daemon of this project answers `soci status`.
STATUS = "/run/containerd/status.sock"
STATE = "/run/containerd/state-{}"
# Seconds that the output of a container may take to end after the container.
REST = 5
# What the daemon of this project logs for each lazy layer when it is complete, and when it is mounted.
COMPLETE, LAZY = '"msg":"layer is complete"', "remote snapshot successfully prepared"
CONTAINERD = """version = 3
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", \
"io.containerd.nri.v1.nri"]
[grpc]
address = "{address}"
[ttrpc]
address = "{address}.ttrpc"
[proxy_plugins.soci]
type = "snapshot"
address = "{snapshotter}"
[proxy_plugins.soci.exports]
root = "{soci}"
enable_remote_snapshot_annotations = "true"
[plugins."io.containerd.transfer.v1.local"]
{transfer}
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "overlayfs"
"""
PROXY = """[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "soci"
"""


class Node:
    """Starts on entry, and on exit stops everything and deletes its state."""

    def __init__(self, site, peer, config=None):
        self.site, self.peer = site, peer
        self.config = peer.config if config is None else config
        # No node finds what another one left.
        number = next(site.nodes)
        self.folder, self.tasks = site.path(f"node-{number}"), STATE.format(number)
        self.root, self.state = os.path.join(self.folder, "soci"), os.path.join(self.folder, "containerd")
        self.snapshotter = self.containerd = self.watcher = None
        self.events, self.numbers = [], 0

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        for folder in (self.root, self.state):
            os.makedirs(folder)
        environment = dict(self.site.environment)
        config = os.path.join(self.folder, "soci.toml")
        with open(config, "w") as file:
            file.write(f'{self.config}\n[content_store]\ncontainerd_address = "{ADDRESS}"\n'
                       if self.peer.daemon == "ours" else self.config)
        if command := self.peer.command(self.site, SNAPSHOTTER, self.root, config):
            self.snapshotter = Daemon(command, self.site.path("snapshotter.log"), environment)
            wait_for("the snapshotter", lambda: connects(SNAPSHOTTER))
        if self.peer.igzip:
            environment["PATH"] = f"{self.site.igzip}:{environment['PATH']}"
        else:
            environment["CONTAINERD_DISABLE_IGZIP"] = "1"
        config = os.path.join(self.folder, "containerd.toml")
        with open(config, "w") as file:
            file.write(CONTAINERD.format(root=self.state, state=self.tasks, address=ADDRESS, snapshotter=SNAPSHOTTER,
                                         soci=self.root, transfer=self.peer.transfer))
            if self.snapshotter:
                file.write(PROXY)
        self.containerd = Daemon(["containerd", "--config", config], self.site.path("containerd.log"), environment)
        wait_for("containerd", lambda: self.answers())
        self.watch()

    def answers(self):
        try:
            self.site.command("ctr", "version", timeout=10)
        except Failure:
            return False
        return True

    def watch(self):
        """Collects the events of tasks, with containerd's own time."""
        self.watcher = subprocess.Popen(["ctr", "events"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

        def collect():
            for line in self.watcher.stdout:
                words = line.split(None, 6)
                if len(words) > 5 and words[5].startswith("/tasks/"):
                    self.events.append((words[5], parse(words[0], words[1]), line))

        threading.Thread(target=collect, daemon=True).start()

    def pull(self, image):
        self.site.command("ctr", "images", "pull", "--snapshotter", self.peer.snapshotter, image)

    def container(self, image, command, options=()):
        """Starts a container and returns it."""
        self.numbers += 1
        name = f"c{self.numbers}"
        words = ["ctr", "run", "--rm", "--cgroup", "", *options, "--snapshotter", self.peer.snapshotter, image, name, *command]
        return Container(self, name, words)

    def complete(self):
        """Whether the daemon of this project reports every lazy layer as complete."""
        said = self.snapshotter.said()
        return said.count(COMPLETE) >= said.count(LAZY)

    def completed(self):
        """The daemon's own time at which its last lazy layer was complete. None if there are no lazy layers."""
        return last_complete(self.snapshotter.said())

    def stop(self):
        if self.containerd:
            self.kill_tasks()
        if self.watcher:
            self.watcher.terminate()
            self.watcher.wait()
        for daemon in (self.containerd, self.snapshotter):
            if daemon:
                daemon.stop()
        unmount_below(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.tasks, ignore_errors=True)

    def kill_tasks(self):
        try:
            for task in self.site.command("ctr", "tasks", "ls", "-q", timeout=20).split():
                self.site.command("ctr", "tasks", "delete", "--force", task, timeout=20)
        except Failure as failure:
            print(f"suite: a container is left to the end of the sandbox: {failure}", flush=True)


class Container:
    """A container that runs. Its lines are kept with the time at which they arrived."""

    def __init__(self, node, name, words):
        self.node, self.name, self.lines = node, name, []
        self.errors = open(node.site.path(f"{name}.log"), "w+")
        self.process = subprocess.Popen(words, env=node.site.environment, stdin=subprocess.DEVNULL, text=True,
                                        stdout=subprocess.PIPE, stderr=self.errors)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.lines.append((time.time(), line.rstrip("\n")))

    def started(self):
        """The time at which containerd started the task. None before that."""
        for topic, when, line in list(self.node.events):
            if topic == "/tasks/start" and f'"container_id":"{self.name}"' in line.replace(" ", ""):
                return when
        return None

    def said_ready(self):
        """The time of the first line that begins with READY or DONE."""
        return next((when for when, line in list(self.lines) if line.startswith(("READY", "DONE"))), None)

    def wait(self, what, when, seconds):
        """Waits for when() and returns its first value. Raises Failure if the container ends before."""
        at = None

        def known():
            nonlocal at
            at = when()
            return at is not None or self.ended()

        wait_for(f"{what} of a container", known, seconds, 0.002)
        if at is None:
            # The container has ended. Its last lines may still arrive.
            self.reader.join(REST)
            at = when()
        if at is not None:
            return at
        self.errors.seek(0)
        raise Failure(f"the container ended with {self.process.returncode} without {what}: {self.errors.read()[-600:].strip()}")

    def ended(self):
        return self.process.poll() is not None

    def stop(self):
        """Ends the container, if it still runs."""
        if not self.ended():
            subprocess.run(["ctr", "tasks", "kill", "--signal", "KILL", self.name], stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, timeout=30)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            print(f"suite: the container {self.name} did not end within 30 s of SIGKILL", flush=True)
            self.process.kill()
            self.process.wait()
        self.errors.close()


def parse(date, clock):
    seconds, _, fraction = clock.partition(".")
    at = datetime.fromisoformat(f"{date}T{seconds}").replace(tzinfo=timezone.utc).timestamp()
    return at + float(f"0.{fraction or 0}")


def last_complete(said):
    """The time of the last line of a log that says that a layer is complete."""
    lines = [line for line in said.splitlines() if COMPLETE in line and line.endswith("}")]
    return max((datetime.fromisoformat(json.loads(line)["time"]).timestamp() for line in lines), default=None)


def connects(path):
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            return False
    return True


def unmount_below(folder):
    with open("/proc/self/mountinfo") as file:
        points = [line.split()[4] for line in file]
    for point in reversed(points):
        if point.startswith(folder + "/"):
            subprocess.run(["umount", "-l", point], stderr=subprocess.DEVNULL, check=False)
