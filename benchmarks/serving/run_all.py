"""Runs every benchmark of serving, one after the other, then renders the table of claims.

python benchmarks/serving/run_all.py [NAME ...]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness import ROOT

HERE = Path(__file__).parent
ORDER = (
    "startup",
    "cold_start",
    "overhead",
    "throughput",
    "grpc_beside_http",
    "density",
    "eviction",
    "intents",
    "contrastive",
    "thousand_tenants",
    "autoscaling",
    "costs",
    "fleet",
    "conformance",
    "mixed_traffic",
    "warmup",
)


def main() -> int:
    """0 when every script ran to its end, whatever the bars say."""
    wanted = sys.argv[1:] or ORDER
    failed = []
    for name in wanted:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(HERE / f"{name}.py")], cwd=ROOT).returncode:
            failed.append(name)
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "report.py")], cwd=ROOT, check=True)
    for name in failed:
        print(f"{name} did not run to its end", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
