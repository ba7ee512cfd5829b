"""The images of the suite: what their layers contain."""

import glob
import itertools
import os
import random
import shutil
import struct
import subprocess
from functools import partial

from . import images
from .site import Failure

HERE = os.path.dirname(os.path.abspath(__file__))
# MiB of incompressible data in the large images.
LARGE = int(os.environ.get("SUITE_LARGE_MB", "2048"))
NODE_PACKAGES = ("express@4.21.2", "lodash@4.17.21", "winston@3.17.0", "pg@8.13.1", "ws@8.18.0", "ajv@8.17.1")


def layout(site, name):
    """Builds the image unless it is cached, and returns its folder."""
    return site.demo if name == "demo" else images.build(site, name, RECIPES[name], inputs(RECIPES[name]))


def inputs(steps):
    """The programs and requirements that the steps name."""
    named = [(getattr(step, "func", step).__name__, getattr(step, "keywords", {}).get("name", "service.js")) for step in steps]
    return "".join(contents(*step) for step in named)


def contents(step, name):
    path = {"python": f"requirements/{name}.txt", "program": f"programs/{name}", "service": f"programs/{name}"}.get(step)
    if not path:
        return ""
    with open(os.path.join(HERE, path)) as file:
        return file.read()


def base(builder):
    """Debian with Python: the first layer of the demo image."""
    builder.layers_of(builder.site.demo, 1)


def python(builder, name):
    """A layer with the pinned packages of requirements/NAME.txt in /opt/NAME, compiled by the image's own Python."""
    root = builder.work()
    blob = builder.layers[0]["digest"].removeprefix("sha256:")
    builder.site.command("tar", "-C", root, "-xzf", os.path.join(builder.blobs, blob))
    target = os.path.join(root, "opt", name)
    builder.site.command(
        "/usr/bin/python3", "-m", "pip", "install", "-q", "--disable-pip-version-check", "--root-user-action=ignore", "--no-compile",
        "--no-deps", "--python-version", "3.11", "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64",
        "--only-binary=:all:", "--no-cache-dir", "--target", target, "-r", os.path.join(HERE, "requirements", f"{name}.txt"))
    # It fails for test data that is invalid on purpose.
    subprocess.run(["chroot", root, "python3", "-m", "compileall", "-q", f"/opt/{name}"], stdout=subprocess.DEVNULL, check=False)
    if not glob.glob(os.path.join(target, "*", "__pycache__")):
        raise Failure(f"the packages of {name} were not compiled")
    builder.tree(root, f"opt/{name}")


def program(builder, name):
    """A layer with a program of this suite in /srv/suite."""
    root = builder.work()
    os.makedirs(os.path.join(root, "srv/suite"))
    shutil.copy(os.path.join(HERE, "programs", name), os.path.join(root, "srv/suite"))
    builder.tree(root)


def busybox(builder):
    root = builder.work()
    os.makedirs(os.path.join(root, "bin"))
    shutil.copy(shutil.which("busybox"), os.path.join(root, "bin/busybox"))
    for command in ("sh", "cat", "sleep", "echo"):
        os.symlink("busybox", os.path.join(root, "bin", command))
    builder.tree(root)


def node(builder):
    """Debian with Node.js."""
    root = builder.work()
    archive = builder.site.environment["SUITE_ARCHIVE"]
    builder.site.command("debootstrap", "--variant=minbase", "--include=nodejs", "bookworm", root, archive)
    for pattern in ("var/cache/apt/*", "var/lib/apt/lists/*", "var/log/*", "dev/*"):
        builder.site.command("sh", "-c", f"rm -rf {root}/{pattern}")
    builder.tree(root)


def service(builder):
    """A layer with packages of npm and the service."""
    root = builder.work()
    folder = os.path.join(root, "srv/service")
    os.makedirs(folder)
    builder.site.command("npm", "install", "--prefix", folder, "--no-audit", "--no-fund", "--ignore-scripts", *NODE_PACKAGES)
    shutil.copy(os.path.join(HERE, "programs/service.js"), folder)
    builder.tree(root)


def noise(builder, first, count, mebibytes):
    """A layer of incompressible files /srv/weights/N."""
    rng = random.Random(first)
    files = ((f"srv/weights/{first + n}", mebibytes << 20, (rng.randbytes(1 << 20) for _ in range(mebibytes)))
             for n in range(count))
    builder.stream(archive(files), level=1)


def many(builder, count):
    """A layer of small files, 1,000 a directory."""
    files = ((f"srv/many/{n // 1000}/{n % 1000}", 24, (b"%23d\n" % n,)) for n in range(count))
    builder.stream(archive(files), level=1)


def small_layers(builder, count):
    """Layers of eight files of 128 KiB."""
    for layer in range(count):
        rng = random.Random(layer)
        builder.stream(archive((f"srv/{layer}/{n}", 1 << 17, (rng.randbytes(1 << 17),)) for n in range(8)), level=1)


def archive(files):
    """Yields a tar archive of (name, size, chunks), in pieces of about a megabyte. Quick enough for a million files."""
    gathered, length = [], 0
    for name, size, chunks in files:
        for piece in itertools.chain([header(name, size)], chunks, [bytes(-size % 512)]):
            gathered.append(piece)
            length += len(piece)
            if length > 1 << 20:
                yield b"".join(gathered)
                gathered, length = [], 0
    yield b"".join(gathered) + bytes(1024)


def header(name, size):
    fields = struct.pack("100s8s8s8s12s12s8s1s100s8s247x", name.encode(), b"0000644", b"0000000", b"0000000", b"%011o" % size,
                         b"14524770000", b"        ", b"0", b"", b"ustar\x0000")
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


RECIPES = {
    "learn": (base, partial(python, name="learn"), partial(program, name="learn.py")),
    "node": (node, service),
    "busybox": (busybox,),
    # The first layer is the one of busybox.
    "layers1": (busybox,),
    "layers10": (busybox, partial(small_layers, count=9)),
    "layers40": (busybox, partial(small_layers, count=39)),
    "layers120": (busybox, partial(small_layers, count=119)),
    "files1k": (busybox, partial(many, count=1_000)),
    "files100k": (busybox, partial(many, count=100_000)),
    "files1m": (busybox, partial(many, count=1_000_000)),
    "weights": (base, partial(program, name="weights.py"), partial(noise, first=0, count=1, mebibytes=LARGE)),
    "remainder": (base, partial(program, name="hello.py"),
                  *(partial(noise, first=n, count=1, mebibytes=LARGE // 4) for n in range(4))),
    "notebook": (base, partial(python, name="notebook")),
}
