"""Starts a training: imports TensorFlow, builds a model, and says READY after the first step."""
import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
sys.path.insert(0, "/opt/learn")
# TensorFlow imports distutils, which Debian's Python lacks and setuptools brings.
import setuptools  # noqa: F401
import numpy
import tensorflow

model = tensorflow.keras.Sequential([tensorflow.keras.layers.Dense(32, activation="relu"), tensorflow.keras.layers.Dense(1)])
model.compile(optimizer="adam", loss="mse")
x = numpy.random.default_rng(1).random((64, 8), dtype=numpy.float32)
loss = model.train_on_batch(x, x.sum(axis=1))
print(f"READY after the first step, loss {float(loss):.3f}", flush=True)
