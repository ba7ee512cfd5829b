"""Builds the images of the suite as OCI layouts below target/image/suite, once. Needs network access.

A recipe is a list of steps. Each step adds one layer: a layer of another image, or a tree that a function fills.
"""

import hashlib
import inspect
import json
import os
import shutil
import subprocess

from .site import Failure

CHUNK = 1 << 20
ENVIRONMENT = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE=1"]


def build(site, name, steps, inputs):
    """Returns the folder of the layout. `steps` are functions that take a Builder, `inputs` the text of files that they use."""
    folder = os.path.join(site.images, name)
    recipe = hashlib.sha256("".join([*map(source, steps), inputs]).encode()).hexdigest()
    try:
        with open(os.path.join(folder, "recipe")) as file:
            if file.read() == recipe:
                return folder
    except OSError:
        pass
    print(f"suite: building the image {name}; the result is cached", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    builder = Builder(site, folder)
    for step in steps:
        step(builder)
    builder.finish()
    with open(os.path.join(folder, "recipe"), "w") as file:
        file.write(recipe)
    return folder


def source(step):
    """What identifies a step: its code and its arguments."""
    function = getattr(step, "func", step)
    return inspect.getsource(function) + repr(getattr(step, "args", ())) + repr(getattr(step, "keywords", {}))


class Builder:
    def __init__(self, site, folder):
        self.site, self.folder = site, folder
        self.blobs = os.path.join(folder, "blobs/sha256")
        self.layers, self.diffs = [], []
        os.makedirs(self.blobs)

    def work(self):
        """An empty folder for the next layer."""
        folder = self.folder + ".work"
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        return folder

    def layers_of(self, layout, count):
        """Adds the first layers of another layout."""
        manifest = load(layout, load(layout)["manifests"][0])
        config = load(layout, manifest["config"])
        for layer, diff in list(zip(manifest["layers"], config["rootfs"]["diff_ids"]))[:count]:
            name = layer["digest"].removeprefix("sha256:")
            os.link(os.path.join(layout, "blobs/sha256", name), os.path.join(self.blobs, name))
            self.layers.append(layer)
            self.diffs.append(diff)

    def tree(self, folder, *paths, level=6):
        """Adds a layer with these paths of a folder, and deletes the folder."""
        tar = ["tar", "-C", folder, "--numeric-owner", "--owner=0", "--group=0", "--sort=name", "--mtime=@1700000000", "-cf", "-",
               *(paths or ["."])]
        with subprocess.Popen(tar, stdout=subprocess.PIPE) as reader:
            self.stream(iter(lambda: reader.stdout.read(CHUNK), b""), level)
        if reader.returncode != 0:
            raise Failure(f"tar of {folder} failed")
        shutil.rmtree(folder)

    def stream(self, chunks, level=6):
        """Adds a layer whose tar archive is these chunks."""
        path, diff = os.path.join(self.blobs, "new"), hashlib.sha256()
        with open(path, "wb") as out:
            gzip = subprocess.Popen(["pigz", "-n", f"-{level}"], stdin=subprocess.PIPE, stdout=out)
            for chunk in chunks:
                diff.update(chunk)
                gzip.stdin.write(chunk)
            gzip.stdin.close()
            if gzip.wait() != 0:
                raise Failure("pigz failed")
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = os.path.getsize(path)
        os.rename(path, os.path.join(self.blobs, digest))
        self.layers.append(descriptor("layer.v1.tar+gzip", digest, size))
        self.diffs.append(f"sha256:{diff.hexdigest()}")

    def put(self, kind, document):
        data = json.dumps(document, separators=(",", ":")).encode()
        digest = hashlib.sha256(data).hexdigest()
        with open(os.path.join(self.blobs, digest), "wb") as file:
            file.write(data)
        return descriptor(kind, digest, len(data))

    def finish(self):
        config = self.put("config.v1+json", {
            "architecture": "amd64", "os": "linux", "config": {"Env": ENVIRONMENT, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": self.diffs}})
        manifest = self.put("manifest.v1+json", {
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config,
            "layers": self.layers})
        manifest["platform"] = {"architecture": "amd64", "os": "linux"}
        with open(os.path.join(self.folder, "index.json"), "w") as file:
            json.dump({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                       "manifests": [manifest]}, file)
        with open(os.path.join(self.folder, "oci-layout"), "w") as file:
            file.write('{"imageLayoutVersion":"1.0.0"}')


def descriptor(kind, digest, size):
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": size}


def load(layout, what=None):
    """Reads the index of a layout, or the document of a descriptor."""
    path = os.path.join(layout, "blobs/sha256", what["digest"].removeprefix("sha256:")) if what else os.path.join(layout, "index.json")
    with open(path) as file:
        return json.load(file)


def size(layout):
    """Compressed bytes of all layers, and their number."""
    layers = load(layout, load(layout)["manifests"][0])["layers"]
    return sum(layer["size"] for layer in layers), len(layers)
