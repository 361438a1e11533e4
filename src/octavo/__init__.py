"""octavo: a self-hosted applied-AI platform in one package.

Each system is a subpackage (`octavo.serving`, ...) whose docstring starts with a five-line example. Importing
`octavo` itself imports nothing heavy.

Some libraries report to their makers unless told otherwise, and read that when they are imported; here nothing leaves
the machine unless the operator says so. Setting such a variable to another value before the start has its way.
"""

import os

__version__ = "0.1.0"

_SILENT = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime on Linux, from 1.29: events, and a device id in ~/.cache
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
for _name, _value in _SILENT.items():
    os.environ.setdefault(_name, _value)
