"""What the checks share: where things are, running programs, and what a container has to be like."""

import os
import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
# Set by `run`.
TOOLS = Path(os.environ["TOOLS"])
PROMETHEUS = Path(os.environ["PROMETHEUS"])
PYTHON_TOOLS = Path(os.environ["PYTHON_TOOLS"])
PROXY = os.environ["PROXY"]
WORK = Path(os.environ["WORK"])
# The ports of the live proxy, and of the Prometheus that scrapes it.
ADMIN = f"127.0.0.1:{os.environ['ADMIN_PORT']}"
PROMETHEUS_URL = f"http://127.0.0.1:{os.environ['PROMETHEUS_PORT']}"

# The default of `drain_timeout_ms`.
DRAIN_SECONDS = 25


class Wrong(Exception):
    """Something is not as it has to be."""


def expect(condition, *what):
    if not condition:
        raise Wrong(" ".join(str(part) for part in what))


def run(*command, code=0, **options):
    """Runs a program that has to end with `code`; returns what it said, on both outputs."""
    options.setdefault("timeout", 300)
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options
    )
    expect(done.returncode == code, f"{command[0]} ended with {done.returncode}, not {code}:\n{done.stdout}")
    return done.stdout


def load(path):
    return yaml.safe_load((ROOT / path).read_text())


def scratch(name):
    """A new directory that goes when the checks end."""
    directory = WORK / "scratch" / name
    directory.mkdir(parents=True)
    return directory


def proxy_accepts(name, arguments, files, environment=None):
    """Would `mongomux run` start with these arguments, `run` first? Absolute paths in them and in `files` are below a scratch
    directory instead, which gets the files: a text, or a path of the repository."""
    place = scratch(f"proxy-{name}")

    def moved(text):
        return re.sub(r"(?<![\w:/.])/(etc|run)/(?=\w)", f"{place}/\\1/", text)

    for path, text in files.items():
        target = place / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(moved(text))
        target.chmod(0o440)
    expect(arguments[0] == "run", "the first argument is", arguments[0])
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MONGOMUX_")}
    run(PROXY, "check", *map(moved, arguments[1:]), env=clean | (environment or {}))


def check_container(container, pod):
    """Not root, nothing to write, no rights, bounded memory; probes that ask for the process."""
    name = container["name"]
    security = {**pod.get("securityContext", {}), **container["securityContext"]}
    for key, value in {
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }.items():
        expect(security.get(key) == value, f"{name}: {key} is {security.get(key)}")
    expect(security.get("runAsUser", 0) > 0, f"{name}: no user by number")
    resources = container["resources"]
    expect("memory" in resources["limits"] and "memory" in resources["requests"], f"{name}: memory has no bounds")
    expect("cpu" not in resources["limits"], f"{name}: a limit of the processor")


def check_proxy_pod(pod, listen):
    """What holds for the container called mongomux, wherever it is, which is returned."""
    container = next(c for c in pod.get("initContainers", []) + pod["containers"] if c["name"] == "mongomux")
    check_container(container, pod)
    expect(pod["securityContext"]["fsGroup"] == 65532, "secrets are not for the group of the proxy")
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    arguments = container["args"]
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        get = container.get(kind, {}).get("httpGet", {"path": "/livez", "port": "mongomux-admin"})
        expect(get["path"] == "/livez", f"the {kind} asks for {get['path']}")
        expect(ports.get(get["port"]) == 9627, f"the {kind} asks at {get['port']}")
    expect("startupProbe" in container and "livenessProbe" in container, "a probe is missing")
    expect(f"--listen={listen}" in arguments, "clients are not served at", listen)
    expect("--admin=0.0.0.0:9627" in arguments, "the admin port is not where probes ask")
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    expect(mounted <= volumes.keys(), "mounts without volumes:", mounted - volumes.keys())
    for name, volume in volumes.items():
        if "secret" in volume:
            # YAML 1.1 has octal numbers, JSON has not.
            expect(volume["secret"]["defaultMode"] == 0o440, f"{name} can be read by everybody")
    return container


def files_of(container, pod, config, secrets):
    """The files that a pod's proxy finds, by path: its configuration, and secrets by the name of their volume."""
    found = {}
    for mount in container["volumeMounts"]:
        volume = next(v for v in pod["volumes"] if v["name"] == mount["name"])
        texts = config if "configMap" in volume else secrets[mount["name"]]
        found.update({f"{mount['mountPath']}/{name}": text for name, text in texts.items()})
    return found


def certificate():
    """A certificate and its key, self-signed."""
    place = scratch("certificate") if not (WORK / "scratch" / "certificate").exists() else WORK / "scratch" / "certificate"
    if not (place / "tls.key").exists():
        run(
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
            "-subj", "/CN=mongomux", "-addext", "subjectAltName=DNS:mongomux",
            "-keyout", place / "tls.key", "-out", place / "tls.crt",
        )  # fmt: skip
    return {name: (place / name).read_text() for name in ("tls.crt", "tls.key")}


def secrets():
    """What stands in the secrets that the manifests name, by the name of the volume."""
    tls = certificate()
    users = WORK / "scratch" / "users.toml"
    if not users.exists():
        run(PROXY, "user", "add", "app", "--file", users, input="secret\n")
    return {
        "mongomux-upstream": {"upstream": "mongodb://service:secret@db.example/"},
        "upstream": {"upstream": "mongodb://service:secret@db.example/"},
        "mongomux-tls": tls,
        "tls": tls,
        "mongomux-users": {"users.toml": users.read_text()},
        "mongomux-admin": {"tokens": "0123456789abcdef0123456789abcdef\n"},
    }
