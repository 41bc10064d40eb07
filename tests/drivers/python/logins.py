"""The director of `tests/drivers/logins`: has real drivers log in through the proxy, and holds what they are told against what the
server itself tells the same driver.

    logins.py --server PORT --root URI --tls DIRECTORY --place NAME=PORT... --driver NAME=COMMAND... [--only REGEX]

One line per check, `ok DRIVER CHECK` or `FAIL DRIVER CHECK: why`. Exit code 0 when all is ok. What a visitor is told to do is
in `visitor.py`. Drivers work side by side, each with users of its own.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from pymongo import MongoClient

# Longest silence of a driver, and longest wait for anything else, seconds.
PATIENCE = 30
# What drivers are told to wait for a server, ms; where there can be none they do.
SELECTION = 1_500
# Between two attempts at what takes a moment to be known, seconds.
PAUSE = 0.1

# Characters that connection strings, SCRAM and SASLprep treat in ways of their own.
ODD_NAME = "odd=user,of @ma/ny:parts%"
ODD_PASSWORD = "p\u00e4ss\u00a0w\u00adord \u2168 %:/@"

# How drivers tell a log-in that failed where they keep no code.
FAILED = "authentication fail|unable to authenticate|exception authenticating"

AUTHENTICATION_FAILED = 18
UNAUTHORIZED = 13
MECHANISM_UNAVAILABLE = 334

# In the text of an error, and what stands for it: what differs from one address or one moment to another.
MASKED = [
    (r"(127\.0\.0\.1|localhost):\d+", "HOST"),
    (r"[0-9a-f]{24}", "ID"),
    (r"Timeout: .*|, Topology Description: .*|\(configured timeouts.*", ""),
    (r"current topology: .*|Topology: .*|Client view of cluster state is .*", ""),
    # To those whom it does not know a server offers no mechanism, so drivers take the old one, and it says no to their
    # first message. The proxy lets nobody see whom it knows, and says no to the second.
    (r"SCRAM-SHA-\d+", "SCRAM"),
    (r"sasl conversation error: ", ""),
    (r"userName='[^']*'", "USER"),
    # What follows has the times of the cluster, which the proxy does not tell before a log-in.
    (r",? ?(The )?full (error|response)( is)?:? .*", ""),
    # The command, as it is quoted to those who may not.
    (r"(lsid|\$clusterTime): .*", ""),
    # To a single server, which a proxy is not.
    (r", \$readPreference: \{[^}]*\}", ""),
]
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class Driver:
    """A visitor's process. One order at a time."""

    def __init__(self, name, command):
        self.name = name
        self.process = subprocess.Popen(
            shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.opened = 0

    def order(self, **order):
        watchdog = threading.Timer(PATIENCE, self.process.kill)
        watchdog.start()
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            # A shell may greet its standard output with something of its own.
            while line := self.process.stdout.readline():
                if line.startswith("{"):
                    return json.loads(line)
        except BrokenPipeError:
            pass
        finally:
            watchdog.cancel()
        raise AssertionError(f"the driver is gone, or silent for {PATIENCE} s, at {order}")

    def open(self, uri):
        self.opened += 1
        client = Client(self, f"client {self.opened}")
        client.failure = self.order(open=client.name, uri=uri).get("error")
        return client

    def end(self):
        try:
            self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Client:
    def __init__(self, driver, name):
        self.driver, self.name = driver, name
        # Some drivers connect at once, and say here what others say of the first command.
        self.failure = None

    def run(self, command, db="admin"):
        if self.failure:
            return {"error": self.failure}
        return self.driver.order(run=command, db=db, on=self.name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.failure:
            self.driver.order(close=self.name)


class Stage:
    def __init__(self, arguments):
        self.server = arguments.server
        self.tls = arguments.tls
        self.places = dict(place.split("=") for place in arguments.place)
        self.password = os.environ["PASSWORD"]
        self.root = MongoClient(arguments.root)

    def create(self, name, password, roles=("readWriteAnyDatabase",), db="admin", **more):
        pwd = {} if db == "$external" else {"pwd": password}
        self.root[db].command("createUser", name, roles=[{"role": r, "db": "admin"} for r in roles], **pwd, **more)


class Visit:
    """A driver on the stage."""

    def __init__(self, stage, driver):
        self.stage, self.driver = stage, driver

    def user(self, suffix):
        """A name that no other driver has."""
        return f"{self.driver.name}-{suffix}"

    def odd_user(self):
        """The crate for Rust does not escape what SCRAM wants escaped, so no server lets such users in."""
        return self.user(ODD_NAME.replace("=", "").replace(",", "") if self.driver.name == "rust" else ODD_NAME)

    def uri(self, place, user=None, password=None, authority="ca", certificate=None, **options):
        port = self.stage.server if place == "server" else self.stage.places[place]
        credential = ""
        if user is not None:
            credential = quote(user, safe="") + ("" if password is None else ":" + quote(password, safe="")) + "@"
        options = {
            "tls": "true",
            "tlsCAFile": f"{self.stage.tls}/{authority}.pem",
            "serverSelectionTimeoutMS": SELECTION,
            # So that errors do not differ in what the driver makes of the topology.
            "directConnection": "true",
            **options,
        }
        if options["tls"] == "false":
            del options["tlsCAFile"]
        if certificate:
            options["tlsCertificateKeyFile"] = f"{self.stage.tls}/{certificate}.pem"
        return f"mongodb://{credential}127.0.0.1:{port}/?" + "&".join(f"{k}={quote(str(v))}" for k, v in options.items())

    def open(self, *args, **kwargs):
        return self.driver.open(self.uri(*args, **kwargs))

    def ask(self, *args, command=None, db="admin", **kwargs):
        """What one command of a new client is answered."""
        with self.open(*args, **kwargs) as client:
            return client.run(command or {"connectionStatus": 1}, db)

    def logs_in(self, place, user, *args, **kwargs):
        """The client is who it says it is, with the roles that the server itself tells."""
        found = self.ask(place, user, *args, **kwargs)
        same(plain(found), plain(self.ask("server", user, *args, **kwargs)), "connectionStatus")
        if "error" in found:
            raise AssertionError(f"neither here nor at the server: {found}")
        names = [u["user"] for u in found["reply"]["authInfo"]["authenticatedUsers"]]
        same(names, [user], "user")

    def refused(self, place, code, text, *args, direct=True, **kwargs):
        """An error with this code and a text like this, the same as that of the server itself; returns it."""
        found = self.ask(place, *args, **kwargs)
        fails(found, code, text)
        if direct:
            same(plain(found), plain(self.ask("server", *args, **kwargs)), "what the server itself says")
        return found


def same(found, due, what):
    if found != due:
        raise AssertionError(f"{what}: {json.dumps(found)[:600]} is not {json.dumps(due)[:600]}")


def fails(answer, code, text):
    """Drivers that keep no code in their error keep its text."""
    error = answer.get("error")
    if not error:
        raise AssertionError(f"no error, but {json.dumps(answer)[:300]}")
    if error["code"] not in (code, None) or not re.search(text, error["message"], re.I | re.S):
        raise AssertionError(f"{error} is not code {code} with /{text}/")


def plain(answer):
    """Without what differs from one moment to another."""
    answer = json.loads(json.dumps(answer))
    for key in ("$clusterTime", "operationTime", "electionId", "opTime"):
        answer.get("reply", {}).pop(key, None)
    if "error" in answer:
        for pattern, mask in MASKED:
            answer["error"]["message"] = re.sub(pattern, mask, answer["error"]["message"], flags=re.S)
    return answer


def eventually(what, condition):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE} s: {what}")
        time.sleep(PAUSE)
    return found


# --- Mechanisms -----------------------------------------------------------------------------------------------------


@check
def scram_sha_256(v):
    v.logs_in("upstream", v.user("both"), v.stage.password, authMechanism="SCRAM-SHA-256")


@check
def scram_sha_1(v):
    v.logs_in("upstream", v.user("both"), v.stage.password, authMechanism="SCRAM-SHA-1")


@check
def no_mechanism_named(v):
    v.logs_in("upstream", v.user("both"), v.stage.password)


@check
def no_mechanism_named_sha_1_only(v):
    v.logs_in("upstream", v.user("old"), v.stage.password)


@check
def mechanism_that_the_user_lacks(v):
    for user, mechanism in [("old", "SCRAM-SHA-256"), ("new", "SCRAM-SHA-1")]:
        # Told from a wrong password by the server alone, where it says so in its text.
        v.refused("upstream", AUTHENTICATION_FAILED, "auth", v.user(user), v.stage.password, authMechanism=mechanism, direct=False)
        fails(v.ask("server", v.user(user), v.stage.password, authMechanism=mechanism), AUTHENTICATION_FAILED, "auth")


@check
def odd_names_and_passwords(v):
    v.logs_in("upstream", v.odd_user(), ODD_PASSWORD)


@check
def auth_source(v):
    v.logs_in("upstream", v.user("elsewhere"), v.stage.password, authSource="shop")
    v.refused("upstream", AUTHENTICATION_FAILED, "auth", v.user("elsewhere"), v.stage.password)


@check
def compressed(v):
    v.logs_in("upstream", v.user("both"), v.stage.password, compressors="zlib")


@check
def users_of_a_file(v):
    for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-1"):
        answer = v.ask("users", "app", v.stage.password, authMechanism=mechanism)
        same(answer["reply"]["authInfo"]["authenticatedUsers"], [{"user": "app", "db": "admin"}], "users")
    v.refused("users", AUTHENTICATION_FAILED, "auth", "app", "wrong")


# --- Those who are not let in ---------------------------------------------------------------------------------------


@check
def wrong_password(v):
    v.refused("upstream", AUTHENTICATION_FAILED, "auth", v.user("both"), "wrong")
    for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-1"):
        v.refused("upstream", AUTHENTICATION_FAILED, "auth", v.user("both"), "wrong", authMechanism=mechanism)


@check
def unknown_user(v):
    for options in ({}, {"authMechanism": "SCRAM-SHA-256"}, {"authMechanism": "SCRAM-SHA-1"}):
        for place in ("upstream", "users"):
            known = v.user("both") if place == "upstream" else "app"
            wrong = v.ask(place, known, "wrong", **options)
            same(plain(v.ask(place, v.user("nobody"), "wrong", **options)), plain(wrong), "a wrong password's answer")


@check
def no_credentials(v):
    for command in ({"find": "c"}, {"insert": "c", "documents": [{}]}, {"listDatabases": 1}, {"usersInfo": 1}):
        for place in ("upstream", "users"):
            v.refused(place, UNAUTHORIZED, "requires authentication", command=command, db="admin")
    # As with a server, whoever has not logged in may ask for a little.
    for command in ({"ping": 1}, {"connectionStatus": 1}):
        same(plain(v.ask("upstream", command=command)), plain(v.ask("server", command=command)), str(command))


@check
def credentials_that_are_not_wanted(v):
    for options in ({}, {"authMechanism": "SCRAM-SHA-1"}):
        text = "clients do not authenticate here.*remove user name, password"
        v.refused("none", MECHANISM_UNAVAILABLE, text, v.user("both"), v.stage.password, direct=False, **options)


# --- Certificates ---------------------------------------------------------------------------------------------------

X509 = {"authMechanism": "MONGODB-X509", "certificate": "client"}
SUBJECT = "CN=worker,O=Clients"


@check
def x509(v):
    # The name may be given, and must be that of the certificate then. Some drivers do not send it, and the crate for Rust
    # sends what no server takes.
    for user in (None, SUBJECT, "CN=other"):
        found, direct = (v.ask(place, user, **X509) for place in ("users", "server"))
        same("reply" in found, "reply" in direct, f"let in as {user}, and let in by the server")
        if "reply" in found:
            same(found["reply"]["authInfo"]["authenticatedUsers"], [{"user": SUBJECT, "db": "$external"}], "users")
        else:
            fails(found, AUTHENTICATION_FAILED, "auth")
        same("reply" in found or user is not None, True, f"let in by the certificate: {found}")


@check
def x509_without_certificate(v):
    v.refused("users", AUTHENTICATION_FAILED, "verified subject name|auth", authMechanism="MONGODB-X509")


@check
def x509_of_nobody(v):
    """A server says 11 and that there is no such user; here that is nobody's business."""
    options = {"authMechanism": "MONGODB-X509", "certificate": "other-client"}
    v.refused("users", AUTHENTICATION_FAILED, "auth", direct=False, **options)


@check
def x509_upstream(v):
    # The crate for Rust keeps neither code nor text.
    v.refused("upstream", MECHANISM_UNAVAILABLE, "mechanism|MONGODB-X509 failure", direct=False, **X509)


@check
def plain_log_in(v):
    options = {"authMechanism": "PLAIN", "authSource": "$external"}
    answer = v.ask("users", "ldap", v.stage.password, **options)
    same(answer["reply"]["authInfo"]["authenticatedUsers"], [{"user": "ldap", "db": "$external"}], "users")
    v.refused("users", AUTHENTICATION_FAILED, "auth", "ldap", "wrong", direct=False, **options)
    v.refused("users", AUTHENTICATION_FAILED, "auth", "nobody", "wrong", direct=False, **options)


@check
def plain_upstream(v):
    options = {"authMechanism": "PLAIN", "authSource": "$external"}
    v.refused("upstream", MECHANISM_UNAVAILABLE, "mechanism", v.user("both"), v.stage.password, direct=False, **options)
    fails(v.ask("server", v.user("both"), v.stage.password, **options), MECHANISM_UNAVAILABLE, "mechanism")


# --- TLS ------------------------------------------------------------------------------------------------------------


# As it is told by one driver or another.
TLS_FAILED = "certificate|PKIX|issuer|TLS"


@check
def wrong_authority(v):
    for place in ("upstream", "server"):
        fails(v.ask(place, v.user("both"), v.stage.password, authority="other-ca"), None, TLS_FAILED)


@check
def expired_certificate(v):
    fails(v.ask("expired", v.user("both"), v.stage.password), None, TLS_FAILED)


@check
def certificate_required(v):
    credential = (v.user("both"), v.stage.password)
    same("reply" in v.ask("required", *credential, certificate="client"), True, "with a certificate")
    for certificate in (None, "stranger"):
        fails(v.ask("required", *credential, certificate=certificate), None, "")


@check
def bad_certificate(v):
    """Where none is needed, who shows one must show a good one, as at the server. Some drivers do not show what is no use."""
    credential = (v.user("both"), v.stage.password)
    ours, theirs = ("reply" in v.ask(place, *credential, certificate="stranger") for place in ("upstream", "server"))
    same(ours, theirs, "let in, and let in by the server")


@check
def without_tls(v):
    fails(v.ask("upstream", v.user("both"), v.stage.password, tls="false"), None, "")


# --- Changes --------------------------------------------------------------------------------------------------------


def changes(v, suffix, change, password):
    """A client that works while its user is changed hears of it, and with the new password all is well.

    It is told 13, by the server or the proxy, whose socket ends with that; some drivers notice the end only when they use the
    socket again. When they log in anew they are told 18. How often comes what is a matter of time, so the kinds are held.
    """
    user = v.user(suffix)
    v.stage.create(user, v.stage.password)
    heard = []

    def told():
        answer = client.run({"find": "c", "limit": 1}, "shop")
        if "error" in answer and (not heard or plain(answer)["error"] != heard[-1]):
            heard.append(plain(answer)["error"])
        error = answer.get("error", {"code": None, "message": ""})
        return error["code"] == AUTHENTICATION_FAILED or re.search(FAILED, error["message"], re.I)

    with v.open("upstream", user, v.stage.password) as client:
        same("reply" in client.run({"find": "c", "limit": 1}, "shop"), True, "worked before")
        change(user)
        eventually("the old password is refused", told)
        for error in heard:
            if error["code"] not in (UNAUTHORIZED, AUTHENTICATION_FAILED, None):
                raise AssertionError(f"errors that were heard: {heard}")
        same(UNAUTHORIZED in [error["code"] for error in heard], True, f"heard that it has to log in again: {heard}")
    if password:
        found = v.ask("upstream", user, password, command={"find": "c"}, db="shop")
        same("reply" in found, True, f"the new password is good: {found}")
    v.refused("upstream", AUTHENTICATION_FAILED, "auth", user, v.stage.password)


def through(v, command):
    """An administrator does it through the proxy."""

    def change(user):
        with v.open("upstream", "root", v.stage.password) as root:
            answer = root.run({name: value or user for name, value in command.items()})
            same("reply" in answer, True, f"{command}: {answer}")

    return change


def directly(v, command):
    return lambda user: v.stage.root.admin.command({name: value or user for name, value in command.items()})


@check
def password_changed_through_the_proxy(v):
    changes(v, "changed-through", through(v, {"updateUser": None, "pwd": "fresh"}), "fresh")


@check
def password_changed_at_the_server(v):
    changes(v, "changed-at", directly(v, {"updateUser": None, "pwd": "fresh"}), "fresh")


@check
def user_dropped_through_the_proxy(v):
    changes(v, "dropped-through", through(v, {"dropUser": None}), None)


@check
def user_dropped_at_the_server(v):
    changes(v, "dropped-at", directly(v, {"dropUser": None}), None)


# --- Rights ---------------------------------------------------------------------------------------------------------

COMMANDS = [
    ("shop", {"find": "c", "filter": {"_id": 1}}),
    ("shop", {"insert": "inserted", "documents": [{"n": 1}]}),
    ("shop", {"update": "c", "updates": [{"q": {"_id": 1}, "u": {"$set": {"n": 1}}}]}),
    ("shop", {"aggregate": "c", "pipeline": [{"$match": {"_id": 1}}], "cursor": {}}),
    ("shop", {"aggregate": "c", "pipeline": [{"$out": {"db": "other", "coll": "out"}}], "cursor": {}}),
    ("shop", {"aggregate": "c", "pipeline": [{"$lookup": {"from": "c", "pipeline": [], "as": "x"}}], "cursor": {}}),
    ("other", {"find": "c"}),
    ("shop", {"listCollections": 1, "nameOnly": True, "authorizedCollections": True}),
    ("admin", {"listDatabases": 1, "nameOnly": True}),
    ("shop", {"createIndexes": "c", "indexes": [{"key": {"_id": 1}, "name": "_id_"}]}),
    ("other", {"dropDatabase": 1}),
    ("shop", {"collMod": "c", "validator": {}}),
    ("admin", {"usersInfo": 1}),
    ("admin", {"createUser": "x", "pwd": "x", "roles": []}),
    ("shop", {"grantRolesToUser": "x", "roles": []}),
    ("admin", {"getParameter": 1, "logLevel": 1}),
    ("admin", {"aggregate": 1, "pipeline": [{"$currentOp": {"allUsers": True}}], "cursor": {}}),
    ("admin", {"replSetGetStatus": 1}),
    ("local", {"find": "oplog.rs", "limit": 1}),
    ("admin", {"find": "system.users"}),
    # Not with `showPrivileges`, which the proxy answers itself, with none.
    ("admin", {"connectionStatus": 1}),
    ("admin", {"noSuchCommand": 1}),
]


@check
def rights(v):
    """Two users with different rights are told exactly what the server itself tells them."""
    told = {}
    for name in ("reader", "writer"):
        credential = (v.user(name), v.stage.password)
        with v.open("upstream", *credential) as ours, v.open("server", *credential) as theirs:
            for db, command in COMMANDS:
                found = plain(ours.run(command, db))
                same(found, plain(theirs.run(command, db)), f"{name}: {db}: {command}")
                told.setdefault(name, []).append("error" in found)
    same(told["reader"] == told["writer"], False, "both are told the same")


# --- All of it ------------------------------------------------------------------------------------------------------


def prepare(v):
    """The users of one driver."""
    stage = v.stage
    stage.create(v.user("both"), stage.password)
    stage.create(v.user("old"), stage.password, mechanisms=["SCRAM-SHA-1"])
    stage.create(v.user("new"), stage.password, mechanisms=["SCRAM-SHA-256"])
    stage.create(v.odd_user(), ODD_PASSWORD)
    stage.create(v.user("elsewhere"), stage.password, db="shop")
    stage.root.admin.command("createUser", v.user("reader"), pwd=stage.password, roles=[{"role": "read", "db": "shop"}])
    stage.root.admin.command(
        "createUser", v.user("writer"), pwd=stage.password, roles=[{"role": "readWrite", "db": "shop"}]
    )


def visit(stage, name, command, only):
    driver = Driver(name, command)
    failed = passed = 0
    began = time.monotonic()
    try:
        v = Visit(stage, driver)
        prepare(v)
        for function in CHECKS:
            if not re.search(only, f"{name} {function.__name__}"):
                continue
            try:
                function(v)
                passed += 1
                print(f"ok {name} {function.__name__}", flush=True)
            except Exception as error:
                failed += 1
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                print(f"FAIL {name} {function.__name__}: {reason:.1500}", flush=True)
                if not isinstance(error, AssertionError):
                    traceback.print_exc()
    finally:
        driver.end()
    return name, passed, failed, time.monotonic() - began


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--tls", required=True)
    parser.add_argument("--place", action="append", default=[])
    parser.add_argument("--driver", action="append", default=[])
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    stage = Stage(arguments)
    stage.create(SUBJECT, None, db="$external")
    # As it is when all drivers have written.
    for collection in (stage.root.shop.c, stage.root.shop.inserted, stage.root.other.c):
        collection.insert_one({"_id": 1, "n": 1})
    drivers = [driver.split("=", 1) for driver in arguments.driver]
    with ThreadPoolExecutor(len(drivers)) as pool:
        results = list(pool.map(lambda driver: visit(stage, *driver, arguments.only), drivers))
    print(f"\n{'driver':<14} {'ok':>4} {'FAIL':>5} {'seconds':>7}")
    for name, passed, failed, seconds in results:
        print(f"{name:<14} {passed:>4} {failed:>5} {seconds:>7.0f}")
    failed = sum(result[2] for result in results)
    sys.exit(0 if not failed and all(result[1] for result in results) else 1)


if __name__ == "__main__":
    main()
