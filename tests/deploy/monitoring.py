"""Metrics, alerts and dashboard, against a proxy that works and a Prometheus that scrapes it.

An expression is good when Prometheus takes it and everything that it selects is there: metric, labels and their values. Every metric
is there from the first scrape on, each known value of its labels at 0, so nothing has to happen for that.
"""

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request

from common import ADMIN, PROMETHEUS, PROMETHEUS_URL, ROOT, expect, load, run
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

ALERTS = "deploy/helm/mongomux/files/alerts.yml"
DASHBOARD = "deploy/helm/mongomux/files/dashboard.json"
# Grafana writes and reads these, and its own types do not have them.
UNTYPED = {".annotations.list[].textFormat", ".annotations.list[].titleFormat", ".templating.list[].definition"}
# A proxy that has one cluster has no label `cluster`, and `.*` matches that as well.
VARIABLES = {"$instance": ".*", "$cluster": ".*", "$server": ".*", "$__rate_interval": "30s"}


def ask(path, **parameters):
    url = f"{PROMETHEUS_URL}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        expect(False, f"{parameters or path}: {error.read().decode()}")


def series(expression):
    return ask("query", query=expression)["result"]


def scraped():
    """Waits until there is enough for rates."""
    deadline = time.monotonic() + 30
    while not series("min_over_time(up[10s]) == 1 and count_over_time(up[1m]) >= 5"):
        expect(time.monotonic() < deadline, "Prometheus has not scraped the proxy within 30 s:", ask("targets"))
        time.sleep(0.2)


def metrics():
    with urllib.request.urlopen(f"http://{ADMIN}/metrics", timeout=10) as answer:
        return answer.read().decode()


def rules():
    return [rule for group in load(ALERTS)["groups"] for rule in group["rules"]]


def filled(expression):
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    expect("$" not in expression, "an unknown variable in", expression)
    return expression


def panels():
    return [panel for panel in load(DASHBOARD)["panels"] if panel["type"] != "row"]


def expressions():
    """Pairs of a name and an expression."""
    found = [(rule["alert"], rule["expr"]) for rule in rules()]
    found += [(panel["title"], filled(target["expr"])) for panel in panels() for target in panel["targets"]]
    return found


def selectors(expression):
    """What an expression selects: metrics with the braces that follow them."""
    # Names that are none of metrics: labels of `by`, functions, operators, and what is in brackets.
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", expression)
    bare = re.sub(r"\[[^\]]*\]", " ", bare)
    words = re.finditer(r"([a-zA-Z_:][\w:]*)\s*(\{[^}]*\}|\(?)", bare)
    keywords = {"and", "or", "unless", "bool", "offset"}
    found = []
    for word in words:
        name, rest = word[1], word[2]
        if name in keywords and not rest.startswith("{"):
            continue
        if rest != "(":
            found.append(name + rest)
    return found


def test_the_metrics_pass_promtool():
    said = run(PROMETHEUS / "promtool", "check", "metrics", input=metrics())
    expect(not said.strip(), said)


def test_the_alerts_are_well_formed_and_say_what_they_are_meant_to():
    said = run(PROMETHEUS / "promtool", "check", "rules", "--lint=all", "--lint-fatal", ROOT / ALERTS)
    expect(f"{len(rules())} rules found" in said, said)
    run(PROMETHEUS / "promtool", "test", "rules", ROOT / "tests/deploy/alerts_test.yml")


def test_every_alert_can_be_seen_to_fire():
    tests = (ROOT / "tests/deploy/alerts_test.yml").read_text()
    for rule in rules():
        expect(f'alertname="{rule["alert"]}",alertstate="firing"' in tests, rule["alert"], "fires in no test")


def test_every_alert_says_what_it_is_about():
    """That its heading is in the runbook is checked with the pages (tests/docs)."""
    for rule in rules():
        name, notes = rule["alert"], rule["annotations"]
        expect(notes.keys() == {"summary", "description", "runbook_url"}, name, "has", sorted(notes))
        expect(rule["labels"] in ({"severity": "critical"}, {"severity": "warning"}), name, "has", rule["labels"])
        # What is the same but sooner is under the same heading.
        anchor = name.lower().removesuffix("soon")
        expect(notes["runbook_url"] == f"docs/runbook.md#{anchor}", name, "is elsewhere:", notes["runbook_url"])


def test_everything_that_is_asked_for_is_there():
    scraped()
    missing = {
        f"{name}: {selector}" for name, expression in expressions() for selector in selectors(expression) if not series(selector)
    }
    expect(not missing, "there is none of\n  " + "\n  ".join(sorted(missing)))


def test_nothing_is_wrong_with_a_proxy_that_works():
    """All alerts were evaluated, and none fires at a proxy under load."""
    scraped()
    deadline = time.monotonic() + 30
    while True:
        loaded = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
        if all(rule["health"] != "unknown" for rule in loaded):
            break
        expect(time.monotonic() < deadline, "the alerts were not evaluated within 30 s")
        time.sleep(0.2)
    expect(len(loaded) == len(rules()), len(loaded), "rules")
    for rule in loaded:
        expect(rule["health"] == "ok", rule["name"], rule.get("lastError"))
        expect(rule["state"] != "firing", rule["name"], "fires:", rule["alerts"])


def test_the_dashboard_shows_something_everywhere():
    """Panels about what goes wrong are empty here, and say so by `> 0`; all others have something to show."""
    scraped()
    for panel in panels():
        for target in panel["targets"]:
            expression = filled(target["expr"])
            expect(series(expression) or re.search(r"> 0\b", expression), panel["title"], "is empty:", expression)


def test_the_dashboard_leaves_no_metric_out():
    shown = "\n".join(expression for _, expression in expressions()) + json.dumps(load(DASHBOARD)["templating"])
    names = set(re.findall(r"(?m)^# TYPE (mongomux_\w+)", metrics()))
    expect(len(names) > 30, "only", names)
    left_out = {name for name in names if not re.search(rf"\b{name}(_bucket|_count|_sum)?\b", shown)}
    expect(not left_out, sorted(left_out))


def test_the_dashboard_is_sound():
    dashboard = load(DASHBOARD)
    everything = dashboard["panels"]
    identities = [panel["id"] for panel in everything]
    expect(len(identities) == len(set(identities)), "panels have the same id")
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    expect(variables == {"datasource", "instance", "cluster", "server"}, sorted(variables))
    taken = set()
    for panel in everything:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        expect(place["x"] + place["w"] <= 24 and not cells & taken, panel["title"], "lies over another one")
        taken |= cells
        for target in panel.get("targets", []):
            expect(target["datasource"]["uid"] == "${datasource}", panel["title"], "has a source of its own")
            expect(re.search(r"\$instance|mongomux_build_info", target["expr"]), panel["title"], "is about all proxies")


def lost(before, after, path=""):
    """What is in one and not in the other any more."""
    if isinstance(before, dict):
        for key, value in before.items():
            if key in (after if isinstance(after, dict) else {}):
                yield from lost(value, after[key], f"{path}.{key}")
            elif value not in (None, False, "", [], {}):
                yield f"{path}.{key}"
    elif isinstance(before, list):
        for one, other in zip(before, after, strict=True):
            yield from lost(one, other, f"{path}[]")


def test_grafana_knows_all_that_is_said():
    """Read into Grafana's own types and written again: what they do not have gets lost."""
    plugins.register_default_plugins()
    dashboard = load(DASHBOARD)
    written = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    unknown = set(lost(dashboard, written)) - UNTYPED
    expect(not unknown, sorted(unknown))
