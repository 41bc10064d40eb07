"""Runs every check of this directory, or those whose names hold one of the arguments; called by `run`."""

import importlib
import os
import select
import shutil
import signal
import sys
import time
import traceback

from common import WORK, Wrong, expect

MODULES = ("image", "compose", "kubernetes", "helm", "systemd", "monitoring")


def ends_well():
    """The demo of `docker/compose.yaml`, which `run` has started: it compares every answer, and says at its end whether all were
    right."""
    demo = int(os.environ["DEMO_PID"])
    ended = os.pidfd_open(demo)
    os.kill(demo, signal.SIGTERM)
    ready, _, _ = select.select([ended], [], [], 30)
    said = (WORK / "demo.log").read_text()
    expect(ready and "all as they have to be" in said, said)


def tried(name, check):
    """Whether it went well; says so."""
    began = time.monotonic()
    try:
        check()
    except Wrong as wrong:
        print(f"FAIL {name}\n     {wrong}", flush=True)
        return False
    except Exception:
        print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)
        return False
    print(f"ok   {name} ({time.monotonic() - began:.1f} s)", flush=True)
    return True


def main():
    checks = [
        (f"{module}: {name.removeprefix('test_').replace('_', ' ')}", check)
        for module in MODULES
        for name, check in vars(importlib.import_module(module)).items()
        if name.startswith("test_")
    ]
    wanted = [(name, check) for name, check in checks if not sys.argv[1:] or any(part in name for part in sys.argv[1:])]
    results = []
    for name, check in wanted:
        results.append(tried(name, check))
        shutil.rmtree(WORK / "scratch", ignore_errors=True)
    results.append(tried("demo: the application has worked all the time", ends_well))
    print(f"{results.count(True)} passed, {results.count(False)} failed")
    return 0 if wanted and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
