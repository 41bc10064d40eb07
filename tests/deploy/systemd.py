"""The units: what systemd itself says of them, and whether the program takes the arguments."""

import re

from common import DRAIN_SECONDS, PROXY, ROOT, expect, proxy_accepts, run, scratch

# systemd's own measure, in tenths: below 2.0 is "OK".
EXPOSURE = 20


def units():
    """Copies that name the program where it is."""
    place = scratch("units")
    for unit in (ROOT / "deploy/systemd").iterdir():
        (place / unit.name).write_text(unit.read_text().replace("/usr/bin/mongomux", PROXY))
    return place


def service(key, text=None):
    text = text or (ROOT / "deploy/systemd/mongomux.service").read_text()
    return re.findall(rf"(?m)^{key}=(.*)$", text)


def template():
    """The unit of which docs/upgrade.md has two instances, one after the other."""
    [text] = re.findall(r"(?s)```ini\n(# \S+/mongomux@\.service\n.*?)```", (ROOT / "docs/upgrade.md").read_text())
    return text


def test_systemd_has_nothing_to_say():
    said = run("systemd-analyze", "verify", "--man=no", *sorted(units().iterdir()))
    expect(not said.strip(), said)


def test_the_unit_of_an_upgrade_is_one_and_its_old_instance_stays_ended():
    unit = scratch("template") / "mongomux@.service"
    unit.write_text(template().replace("/usr/bin/mongomux", PROXY))
    said = run("systemd-analyze", "verify", "--man=no", unit)
    expect(not said.strip(), said)
    expect(service("SuccessExitStatus", template()) == ["3"], "an instance that cut something off would take over again")
    [seconds] = service("TimeoutStopSec", template())
    expect(int(seconds) > DRAIN_SECONDS, seconds, "s")


def test_little_is_exposed():
    run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", units() / "mongomux.service")


def test_the_program_takes_the_arguments():
    [command] = service("ExecStart")
    arguments = command.replace("${CREDENTIALS_DIRECTORY}", "/run/credentials/mongomux.service").split()
    files = {
        "/etc/mongomux/mongomux.toml": "max_pool_size = 10\n",
        "/run/credentials/mongomux.service/upstream": "mongodb://service:secret@db.example/",
    }
    proxy_accepts("systemd", arguments[1:], files)


def test_it_is_given_the_time_to_drain():
    [seconds] = service("TimeoutStopSec")
    expect(int(seconds) > DRAIN_SECONDS, seconds, "s")
    expect(service("RestartPreventExitStatus") == ["2"], "a wrong configuration is tried again and again")
    expect(service("SuccessExitStatus") == ["3"], "a drain that cut something off is a failure")


def test_sockets_have_the_names_that_the_program_knows():
    for unit, name in (("mongomux.socket", "listener"), ("mongomux-admin.socket", "admin")):
        text = (ROOT / "deploy/systemd" / unit).read_text()
        expect(f"\nFileDescriptorName={name}\n" in text, unit, "has another name")
