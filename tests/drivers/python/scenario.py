"""The driver scenario for pymongo and motor: each check prints `ok NAME`, `FAIL NAME: reason` or `n/a NAME: why`.

    scenario.py URI [--api pymongo|async|motor] [--view sharded|replicaset|loadbalanced] [--compressor NAME]

The view is what the driver's own monitoring must say about the address. `tests/drivers/README.md` explains the rest.
"""

import argparse
import sys
import traceback

import blocking
import checks_data
import checks_cursors
import checks_sessions
import checks_streams
import checks_limits
from harness import CHECKS, VIEWS, Lacking, Scenario


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("uri")
    parser.add_argument("--api", choices=blocking.APIS, default="pymongo")
    parser.add_argument("--view", choices=VIEWS, default="sharded")
    parser.add_argument("--compressor", choices=["zlib", "snappy", "zstd"])
    parser.add_argument("--only", help="these checks, and connect and close; for work on a check", default="")
    arguments = parser.parse_args()
    scenario = Scenario(arguments)
    failed = False
    for function in CHECKS:
        name = function.__name__
        if arguments.only and name not in ("connect", *arguments.only.split(","), "close"):
            continue
        try:
            function(scenario)
            print(f"ok {name}", flush=True)
        except Lacking as why:
            print(f"n/a {name}: {why}", flush=True)
        except Exception as error:
            failed = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"FAIL {name}: {reason:.400}", flush=True)
            traceback.print_exc()
            if name == "connect":
                break
    print("finished", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
