"""Programs that run beside the measurement, and what they cost."""

import os
import subprocess
from dataclasses import dataclass

TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Usage:
    """CPU seconds, including children that ended, and the sum of the peak RSS of the processes in MiB."""
    cpu: float
    peak: float

    def since(self, before):
        return Usage(self.cpu - before.cpu, self.peak)


class Daemon:
    def __init__(self, command, log, environment):
        self.log = log
        with open(log, "w") as output:
            self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                                            stderr=subprocess.STDOUT)

    def said(self):
        """Everything that the program printed so far."""
        with open(self.log, errors="replace") as file:
            return file.read()

    def usage(self):
        pids = tree(self.process.pid)
        return Usage(sum(map(cpu, pids)), sum(map(peak, pids)))

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def tree(pid):
    """The process and its descendants that run. Shims of containers are not among them."""
    found, waiting = [], [pid]
    while waiting:
        pid = waiting.pop()
        try:
            if "shim" in read(pid, "comm"):
                continue
            waiting += map(int, read(pid, f"task/{pid}/children").split())
            for thread in os.listdir(f"/proc/{pid}/task"):
                if int(thread) != pid:
                    waiting += map(int, read(pid, f"task/{thread}/children").split())
        except OSError:
            continue
        found.append(pid)
    return found


def read(pid, name):
    with open(f"/proc/{pid}/{name}") as file:
        return file.read()


def cpu(pid):
    try:
        fields = read(pid, "stat").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICK


def peak(pid):
    try:
        lines = read(pid, "status").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
