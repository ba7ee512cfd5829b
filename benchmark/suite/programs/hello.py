"""A small application: imports a little of the standard library and says READY."""
import json
import logging
import urllib.request

logging.getLogger("hello").debug(urllib.request.__name__)
print("READY", json.dumps({"hello": "world"}), flush=True)
