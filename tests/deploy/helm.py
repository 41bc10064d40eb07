"""The chart: linted, rendered with several values, and refused with wrong ones."""

import json
import shutil

import yaml
from common import ROOT, TOOLS, check_proxy_pod, expect, load, run, scratch
from kubernetes import accepted, check_monitor, one, pod_of, validate

CHART = ROOT / "deploy/helm/mongomux"
EXISTING = {"upstream": {"existingSecret": "mongomux-upstream"}}
APPLICATION = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop}
spec:
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec:
      securityContext: {fsGroup: 65532}
      initContainers:
        {{- include "mongomux.sidecar" .Subcharts.mongomux | nindent 8 }}
      containers: [{name: shop, image: "shop:1"}]
      volumes:
        {{- include "mongomux.volumes" .Subcharts.mongomux | nindent 8 }}
"""


def values_file(name, values):
    path = scratch(f"helm-{name}") / "values.yaml"
    path.write_text(json.dumps(values))
    return path


def template(name, values, chart=CHART, code=0):
    command = [TOOLS / "helm", "template", "rel", chart, "--namespace", "shop", "--kube-version", "1.30.0"]
    return run(*command, "--values", values_file(name, values), code=code)


def rendered(name, values, chart=CHART):
    lines = template(name, values, chart).split("\n")
    # It says on the standard error that it follows the links to alerts and dashboard.
    documents = yaml.safe_load_all("\n".join(line for line in lines if not line.startswith("walk.go")))
    documents = [document for document in documents if document]
    validate(documents)
    return documents


def kinds(documents):
    return sorted(document["kind"] for document in documents)


def test_it_passes_its_own_linter():
    said = run(TOOLS / "helm", "lint", "--strict", CHART, "--kube-version", "1.30.0", "--values", values_file("lint", EXISTING))
    expect("0 chart(s) failed" in said, said)


def test_the_defaults_make_proxies_that_would_start():
    documents = rendered("defaults", EXISTING)
    expect(kinds(documents) == ["ConfigMap", "Deployment", "PodDisruptionBudget", "Service"], kinds(documents))
    pod, labels = pod_of(documents)
    container = check_proxy_pod(pod, "0.0.0.0:27016")
    expect("--admin-probes-only" in container["args"], container["args"])
    expect(one(documents, "Service")["spec"]["selector"].items() <= labels.items(), "the service finds no pod")
    accepted("helm-defaults", documents, pod, container)


def test_everything_that_can_be_switched_on_is_there():
    values = {
        "upstream": {"uri": "mongodb://db.example/"},
        "config": 'auth = "users"\nusers_file = "/run/secrets/mongomux-users/users.toml"\ntls = true\n'
        'tls_certificate_key_file = "/run/secrets/mongomux-tls/tls.crt"\ntls_key_file = "/run/secrets/mongomux-tls/tls.key"\n',
        "drainTimeoutSeconds": 60,
        "tls": {"existingSecret": "tls"},
        "users": {"existingSecret": "users"},
        "adminTokens": {"existingSecret": "tokens"},
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True},
        "grafanaDashboard": {"enabled": True},
        "image": {"repository": "registry.example/mongomux", "digest": "sha256:" + "0" * 64},
        "standalone": {"replicas": 3, "preStopSleepSeconds": 7, "nodeSelector": {"disk": "none"}, "podLabels": {"team": "a"}},
    }
    documents = rendered("everything", values)
    pod, labels = pod_of(documents)
    container = check_proxy_pod(pod, "0.0.0.0:27016")
    expect(container["image"] == values["image"]["repository"] + "@" + values["image"]["digest"], container["image"])
    expect("--admin-probes-only" not in container["args"], "tokens are there, and nobody may use them")
    expect(pod["terminationGracePeriodSeconds"] == 77, pod["terminationGracePeriodSeconds"], "s to end")
    expect("drain_timeout_ms = 60000" in one(documents, "ConfigMap", "rel-mongomux")["data"]["mongomux.toml"], "drain")
    expect(one(documents, "Secret")["stringData"] == {"upstream": "mongodb://db.example/"}, "another connection string")
    expect(labels["team"] == "a" and pod["nodeSelector"] == {"disk": "none"}, "labels")
    check_monitor(one(documents, "PodMonitor"), labels, container)
    expect(one(documents, "PrometheusRule")["spec"] == load("deploy/helm/mongomux/files/alerts.yml"), "other alerts")
    dashboard = one(documents, "ConfigMap", "rel-mongomux-dashboard")["data"]["mongomux.json"]
    expect(json.loads(dashboard) == load("deploy/helm/mongomux/files/dashboard.json"), "another dashboard")
    config = [d for d in documents if d["metadata"]["name"] != "rel-mongomux-dashboard"]
    accepted("helm-everything", config, pod, container)


def test_whoever_wants_clients_without_passwords_has_to_say_so():
    values = {**EXISTING, "config": "max_pool_size = 5\n", "standalone": {"allowUnauthenticatedClients": True}}
    documents = rendered("open", values)
    pod, _ = pod_of(documents)
    accepted("helm-open", documents, pod, check_proxy_pod(pod, "0.0.0.0:27016"))


def test_an_application_includes_the_sidecar():
    chart = scratch("application")
    (chart / "templates").mkdir()
    (chart / "templates/shop.yaml").write_text(APPLICATION)
    dependency = {"name": "mongomux", "version": "0.1.0", "repository": ""}
    (chart / "Chart.yaml").write_text(json.dumps({"apiVersion": "v2", "name": "shop", "version": "1.0.0", "dependencies": [dependency]}))
    shutil.copytree(CHART, chart / "charts/mongomux")
    values = {"mongomux": {**EXISTING, "config": "max_pool_size = 5\n", "standalone": {"enabled": False}}}
    documents = rendered("sidecar", values, chart)
    expect(kinds(documents) == ["ConfigMap", "Deployment"], kinds(documents))
    pod, _ = pod_of(documents)
    container = check_proxy_pod(pod, "127.0.0.1:27016")
    expect(pod["initContainers"] == [container] and container["restartPolicy"] == "Always", "it is no sidecar")
    accepted("helm-sidecar", documents, pod, container)


def test_wrong_values_are_refused():
    for name, values, reason in (
        ("no-upstream", {}, "existingSecret (or, for trials, uri) is needed"),
        ("two-upstreams", {"upstream": {"existingSecret": "a", "uri": "mongodb://b"}}, "not both"),
        ("no-uri", {"upstream": {"uri": "http://b"}}, "upstream"),
        ("misspelt", {**EXISTING, "replica": 3}, "replica"),
        ("digest", {**EXISTING, "image": {"digest": "sha256:1"}}, "digest"),
        ("level", {**EXISTING, "log": {"level": "loud"}}, "level"),
        ("drain", {**EXISTING, "drainTimeoutSeconds": -1}, "drainTimeoutSeconds"),
    ):
        said = template(name, values, code=1)
        expect(reason in said, f"{name}: refused for something else:\n{said}")
