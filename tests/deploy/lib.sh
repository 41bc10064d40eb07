# What these checks need, into the cache of the driver matrix, whose functions are used. To be sourced, under `set -euo pipefail`.

suite=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$suite/../drivers/lib.sh"

# As they are known to the Go module proxy: helm itself, kustomize itself, and the loader that is inside `docker compose`.
go_tools=(
    helm.sh/helm/v3/cmd/helm@v3.22.0
    sigs.k8s.io/kustomize/kustomize/v5@v5.8.1
    github.com/compose-spec/compose-go/v2/cmd@v2.16.2
)

# need_tools: sets `tools`, where the programs of Go are, `prometheus`, where those of Prometheus are, and `python_tools`.
need_tools() {
    command -v go >/dev/null || fail "go is missing: install Go 1.25 or later"
    command -v systemd-analyze >/dev/null || fail "systemd-analyze is missing: install the package systemd"
    tools=$cache/deploy-go-$(go env GOVERSION)-$(printf '%s\n' "${go_tools[@]}" | key -)
    install "$tools" install_go_tools
    prometheus=$cache/deploy-prometheus-$(dpkg --print-architecture)
    install "$prometheus" install_prometheus
    prometheus+=/usr/bin
    python_tools=$cache/deploy-python-$python_version-$(key "$suite/requirements.txt")
    install "$python_tools" install_python "$suite/requirements.txt"
}

install_go_tools() {
    local tool
    for tool in "${go_tools[@]}"; do GOBIN=$1 go install "$tool" >&2; done
    mv "$1/cmd" "$1/compose-spec"
}

# Unpacked only: the package would start a service.
install_prometheus() {
    (
        cd "$1"
        local get=(apt-get -qq -o APT::Sandbox::User=root download prometheus)
        "${get[@]}" 2>/dev/null || { "${as_root[@]}" apt-get -qq update >&2 && "${get[@]}" >&2; }
        dpkg-deb --extract prometheus_*.deb unpacked
        mkdir -p usr/bin
        mv unpacked/usr/bin/{prometheus,promtool} usr/bin/
        rm -rf unpacked prometheus_*.deb
    )
}

as_root=()
((EUID == 0)) || as_root=(sudo)
