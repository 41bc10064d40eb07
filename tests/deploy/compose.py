"""`docker/compose.yaml`: does it load, is everything there that it names, and would its proxy start?"""

import json
import shutil
from pathlib import Path

import yaml
from common import DRAIN_SECONDS, PROMETHEUS, ROOT, TOOLS, expect, load, proxy_accepts, run, scratch


def composed():
    """As `docker compose` understands it."""
    output = run(TOOLS / "compose-spec", "--format", "json", "compose.yaml", cwd=ROOT / "docker")
    return json.loads(output)


def networks(services, name):
    return set(services[name]["networks"])


def test_it_loads_and_has_all_parts():
    services = composed()["services"]
    wanted = {"mongo1", "mongo2", "mongo3", "mongo-init", "proxy", "demo", "prometheus", "grafana"}
    expect(services.keys() == wanted, sorted(services))


def test_the_files_that_it_mounts_are_there():
    mounts = [
        volume["source"]
        for service in composed()["services"].values()
        for volume in service.get("volumes", [])
        if volume["type"] == "bind"
    ]
    expect(len(mounts) >= 5, "only", mounts)
    for source in mounts:
        expect(Path(source).exists(), source, "is not there")


def test_the_proxy_would_start_and_is_given_the_time_to_drain():
    services = composed()["services"]
    proxy = services["proxy"]
    proxy_accepts("compose", ["run"], {}, proxy["environment"])
    expect(proxy["stop_grace_period"] == "30s" and DRAIN_SECONDS < 30, "stop_grace_period", proxy["stop_grace_period"])
    for server in proxy["environment"]["MONGOMUX_UPSTREAM"].split("/")[2].split(","):
        expect(networks(services, server) & networks(services, "proxy"), server, "is out of the proxy's reach")


def test_the_application_reaches_the_proxy_and_nothing_behind_it():
    services = composed()["services"]
    host = services["demo"]["environment"]["DEMO_URI"].split("/")[2].split(":")[0]
    expect(networks(services, "demo") & networks(services, host), host, "is out of its reach")
    for server in ("mongo1", "mongo2", "mongo3"):
        expect(not networks(services, "demo") & networks(services, server), "it reaches", server)


def test_nothing_is_published_beyond_this_machine():
    for name, service in composed()["services"].items():
        for port in service.get("ports", []):
            expect(port.get("host_ip") == "127.0.0.1", name, "publishes", port)


def test_prometheus_takes_its_configuration_and_finds_the_proxy():
    place = scratch("prometheus-config")
    shutil.copy(ROOT / "docker/prometheus.yml", place / "prometheus.yml")
    services = composed()["services"]
    for volume in services["prometheus"]["volumes"]:
        if volume["target"].endswith("alerts.yml"):
            shutil.copy(volume["source"], place / Path(volume["target"]).name)
    said = run(PROMETHEUS / "promtool", "check", "config", place / "prometheus.yml")
    expect("1 rule files found" in said, said)
    target = load("docker/prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"][0]
    host, port = target.split(":")
    expect(services[host]["environment"]["MONGOMUX_ADMIN"].endswith(f":{port}"), target, "is not the admin port")
    expect(networks(services, host) & networks(services, "prometheus"), target, "is out of its reach")


def test_grafana_finds_prometheus_and_the_dashboard():
    services = composed()["services"]
    provisioning = ROOT / "docker/grafana/provisioning"
    source = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"][0]
    host = source["url"].split("/")[2].split(":")[0]
    expect(networks(services, host) & networks(services, "grafana"), host, "is out of its reach")
    folder = yaml.safe_load((provisioning / "dashboards/mongomux.yaml").read_text())["providers"][0]["options"]["path"]
    targets = [volume["target"] for volume in services["grafana"]["volumes"]]
    expect(f"{folder}/mongomux.json" in targets, folder, "has no dashboard")
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    expect(home in targets, home, "is not mounted")


def test_the_application_was_run_with_the_driver_that_it_names():
    """`run` runs it with the driver of the matrix; the image has to install the same one."""
    matrix = set((ROOT / "tests/drivers/python/requirements.txt").read_text().split("\n"))
    wanted = (ROOT / "docker/demo/requirements.txt").read_text().split("\n")
    expect(set(wanted) <= matrix, "other versions than the matrix has:", wanted)
