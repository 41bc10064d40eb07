"""pymongo as a visitor of `tests/drivers/logins`: opens clients, runs commands, and tells what it is told.

Orders come over standard input, one JSON line each, and each has one line as its answer:

    {"open": NAME, "uri": URI}                   a client of that name
    {"run": COMMAND, "db": DATABASE, "on": NAME} a command in extended JSON; answered by {"reply": REPLY} or
                                                 {"error": {"kind": NAME, "code": CODE or null, "message": TEXT}}
    {"close": NAME}

The code is the server's, wherever the driver keeps it. `node/visitor.mjs` and the others do the same.
"""

import json
import sys

from bson import json_util
from pymongo import MongoClient


def obey(order, clients):
    if "open" in order:
        clients[order["open"]] = MongoClient(order["uri"])
        return {}
    if "close" in order:
        clients.pop(order["close"]).close()
        return {}
    command = json_util.loads(json.dumps(order["run"]))
    return {"reply": clients[order["on"]][order["db"]].command(command)}


def main():
    clients = {}
    for line in sys.stdin:
        try:
            answer = obey(json.loads(line), clients)
        except Exception as error:
            code = getattr(error, "code", None)
            answer = {"error": {"kind": type(error).__name__, "code": code, "message": str(error)}}
        print(json_util.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
