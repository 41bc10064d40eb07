"""The manifests: as `kubectl apply --kustomize` would send them, against the schemas of the oldest and the newest version."""

import kubernetes_validate
import yaml
from common import (
    DRAIN_SECONDS,
    ROOT,
    TOOLS,
    Wrong,
    check_container,
    check_proxy_pod,
    expect,
    files_of,
    proxy_accepts,
    run,
    secrets,
)

# Native sidecars are on from 1.29 on, `preStop.sleep` from 1.30 on.
VERSIONS = ("1.30", "1.37")


def validate(documents):
    """Against the schemas of Kubernetes, unknown fields refused. Kinds of the Prometheus operator have none here."""
    for document in documents:
        if document["apiVersion"].startswith("monitoring.coreos.com/"):
            continue
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                raise Wrong(f"{document['kind']} against {version}: {error.message} at {list(error.path)}") from None


def built(name):
    documents = list(yaml.safe_load_all(run(TOOLS / "kustomize", "build", ROOT / "deploy/kubernetes" / name)))
    validate(documents)
    return documents


def one(documents, kind, name=None):
    found = [d for d in documents if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    expect(len(found) == 1, len(found), "documents of the kind", kind)
    return found[0]


def check_monitor(monitor, labels, container):
    """The prometheus operator's kind, of which only what is used is looked at."""
    expect(monitor["kind"] == "PodMonitor", monitor["kind"])
    spec = monitor["spec"]
    expect(set(spec) == {"selector", "podMetricsEndpoints"}, sorted(spec))
    wanted = spec["selector"]["matchLabels"].items()
    expect(wanted <= labels.items(), monitor["metadata"]["name"], "does not find", labels)
    ports = {port["name"] for port in container["ports"]}
    for endpoint in spec["podMetricsEndpoints"]:
        expect(endpoint["port"] in ports and endpoint["path"] == "/metrics", endpoint)


def pod_of(documents):
    template = one(documents, "Deployment")["spec"]["template"]
    return template["spec"], template["metadata"]["labels"]


def accepted(name, documents, pod, container):
    config = one(documents, "ConfigMap")["data"]
    proxy_accepts(name, container["args"], files_of(container, pod, config, secrets()))


def test_the_schemas_refuse_what_is_misspelt():
    documents = built("sidecar")
    pod_of(documents)[0]["initContainers"][0]["restartPolicyy"] = "Always"
    try:
        validate(documents)
    except Wrong:
        return
    raise Wrong("`restartPolicyy` was accepted")


def test_the_sidecar_is_native_and_started_before_the_application():
    documents = built("sidecar")
    pod, _ = pod_of(documents)
    container = check_proxy_pod(pod, "127.0.0.1:27016")
    expect(pod["initContainers"] == [container] and container["restartPolicy"] == "Always", "it is no sidecar")
    expect("readinessProbe" not in container, "its readiness would be that of the pod")
    for application in pod["containers"]:
        check_container(application, pod)
    expect(pod["terminationGracePeriodSeconds"] > DRAIN_SECONDS + 10, "no time for the application and the drain")
    accepted("sidecar", documents, pod, container)


def test_proxies_of_their_own_are_reached_drain_and_are_replaced_one_by_one():
    documents = built("standalone")
    pod, labels = pod_of(documents)
    container = check_proxy_pod(pod, "0.0.0.0:27016")
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    expect(pod["terminationGracePeriodSeconds"] > DRAIN_SECONDS + sleep, "no time to drain")
    service = one(documents, "Service")["spec"]
    expect(service["selector"].items() <= labels.items(), "the service finds no pod")
    ports = {port["name"] for port in container["ports"]}
    expect({port["targetPort"] for port in service["ports"]} <= ports, "the service asks for another port")
    budget = one(documents, "PodDisruptionBudget")["spec"]
    expect(budget["selector"]["matchLabels"].items() <= labels.items(), "the budget is about other pods")
    accepted("standalone", documents, pod, container)


def test_what_is_scraped_is_there():
    monitors = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/podmonitor.yaml").read_text()))
    expect(len(monitors) == 2, len(monitors), "monitors")
    for monitor, name in zip(monitors, ("sidecar", "standalone"), strict=True):
        pod, labels = pod_of(built(name))
        check_monitor(monitor, labels, check_proxy_pod(pod, {"sidecar": "127.0.0.1:27016"}.get(name, "0.0.0.0:27016")))
