"""The image: is its recipe sound, are all files copied that it needs, and does its health check tell the truth?"""

import json
import os
import re
import shutil

from common import ADMIN, PROXY, PYTHON_TOOLS, ROOT, WORK, Wrong, expect, load, run, scratch


def instructions(path="Dockerfile"):
    """Pairs of an instruction and its text, continued lines joined, comments gone."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / path).read_text())
    lines = [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_dockerfiles_pass_the_linter():
    for path in ("Dockerfile", "docker/demo/Dockerfile"):
        run(PYTHON_TOOLS / "bin" / "hadolint", ROOT / path)


def test_every_image_has_a_version():
    images = [value.split("=", 1)[1] for name, value in instructions() if name == "ARG" and "_IMAGE=" in value]
    images += [value.split()[0] for name, value in instructions("docker/demo/Dockerfile") if name == "FROM"]
    images += [service["image"] for service in load("docker/compose.yaml")["services"].values() if "build" not in service]
    expect(len(images) >= 8, "only", images)
    for image in images:
        tag = re.search(r":([\w.-]+)$", image)
        expect(tag and tag[1] != "latest", image, "has no version")


def test_runs_as_nobody_in_particular_and_stops_by_draining():
    last = {name: value for name, value in instructions()}
    expect(re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"]), "USER", last["USER"])
    expect(last["STOPSIGNAL"] == "SIGTERM", "STOPSIGNAL", last["STOPSIGNAL"])
    expect(last["EXPOSE"].split() == ["27016", "9627"], "EXPOSE", last["EXPOSE"])
    entry = json.loads(last["ENTRYPOINT"]) + json.loads(last["CMD"])
    expect(entry == ["/usr/local/bin/mongomux", "run"], entry)


def copied(source, target, place, allowed):
    expect(source in allowed, f".dockerignore keeps {source} from the build")
    target = place / target
    if (ROOT / source).is_dir():
        shutil.copytree(ROOT / source, target, dirs_exist_ok=True)
    else:
        shutil.copy2(ROOT / source, target / source if target.is_dir() else target)


def test_what_is_copied_is_enough_to_build():
    """The steps of the build stage, one after the other, in an empty directory; `cargo` only checks there what it would build."""
    place = scratch("build")
    shims = scratch("shims")
    cargo = shutil.which("cargo")
    (shims / "cargo").write_text(
        "#!/bin/sh\n"
        '[ "$*" = "build --release --locked --bin mongomux" ] || { echo "cargo $* is not known here" >&2; exit 1; }\n'
        f"exec {cargo} check --locked --bin mongomux\n"
    )
    (shims / "strip").write_text("#!/bin/sh\n")
    for shim in shims.iterdir():
        shim.chmod(0o755)
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    expect("*" in ignored, ".dockerignore lets everything through")
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    target = os.environ["CARGO_CHECK_TARGET"]
    environment = {**os.environ, "PATH": f"{shims}:{os.environ['PATH']}", "CARGO_TARGET_DIR": target}

    steps = instructions()
    first = next(i for i, (name, _) in enumerate(steps) if name == "FROM")
    last = next(i for i, (name, _) in enumerate(steps) if name == "FROM" and i > first)
    said = []
    for name, value in steps[first + 1 : last]:
        if name == "COPY":
            *sources, destination = value.split()
            for source in sources:
                copied(source, destination, place, allowed)
        elif name == "RUN":
            said.append(run("sh", "-ec", value, cwd=place, env=environment, timeout=1200))
        else:
            expect(name == "WORKDIR", name, "is not known here")
    for file in ("src/main.rs", "src/lib.rs"):
        expect((place / file).read_text() == (ROOT / file).read_text(), file, "is the stub")
    # Else it would be the stub that was built, as files that are older than what was made of them are not looked at again.
    expect("Checking mongomux" in said[-1], "the program itself was not built after its files were copied:\n", said[-1])


def health_check():
    value = dict(instructions())["HEALTHCHECK"]
    command = json.loads(value.split("CMD", 1)[1])
    expect(command[0] == "/usr/local/bin/mongomux", "the health check needs", command[0])
    return [PROXY, *command[1:]]


def test_the_health_check_is_good_where_the_proxy_serves_probes_alone():
    """As in `docker/compose.yaml`, and as `run` has started it."""
    run(*health_check(), env={**os.environ, "MONGOMUX_ADMIN": ADMIN})


def test_the_health_check_is_bad_where_no_proxy_is():
    nobody = WORK / "nobody.sock"
    try:
        run(*health_check(), env={**os.environ, "MONGOMUX_ADMIN": f"unix:{nobody}"}, code=1)
    except Wrong as wrong:
        raise Wrong(f"no proxy, and yet {wrong}") from None
