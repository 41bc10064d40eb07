package stage

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Proxy is the one under test, with a relay before it.
type Proxy struct {
	*process
	Relay *Relay
	admin string
	spawn func() *process
}

// The bound is small, so that clients share connections and wait for them.
const settings = `
max_pool_size = 6
drain_timeout_ms = 4_000
drain_quiet_ms = 500
retry = %q
upgrade_socket = %q
`

// StartProxy starts it before the set and waits until it can serve.
func StartProxy(ctx context.Context, path, directory string, set *Set, retry string) (*Proxy, error) {
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	listen, admin := "127.0.0.1:"+strconv.Itoa(ports[0]), "127.0.0.1:"+strconv.Itoa(ports[1])
	config := filepath.Join(directory, "mongomux.toml")
	content := fmt.Sprintf(settings, retry, filepath.Join(directory, "upgrade.sock"))
	if err := os.WriteFile(config, []byte(content), 0o644); err != nil {
		return nil, err
	}
	relay, err := NewRelay(listen)
	if err != nil {
		return nil, err
	}
	p := &Proxy{Relay: relay, admin: "http://" + admin}
	p.spawn = func() *process {
		return &process{path: path, args: []string{"run", "--config", config, "--listen", listen, "--admin", admin, set.URI()},
			log: filepath.Join(directory, "mongomux.log")}
	}
	p.process = p.spawn()
	if err := p.start(); err != nil {
		return p, err
	}
	return p, p.ready(ctx)
}

// URI for its clients.
func (p *Proxy) URI() string { return "mongodb://" + p.Relay.Address() + "/" }

func (p *Proxy) ready(ctx context.Context) error {
	return eventually(ctx, 30*time.Second, func() error { return p.ask(ctx, http.MethodGet, "/readyz") })
}

func (p *Proxy) ask(ctx context.Context, method, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, p.admin+path, http.NoBody)
	if err != nil {
		return err
	}
	// Of an order, which a page of a browser could not send.
	request.Header.Set("X-Mongomux", "1")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s is answered with %s", method, path, response.Status)
	}
	return nil
}

// takeOver starts the next process, which takes the clients over from the running one.
func (p *Proxy) takeOver() error {
	next := p.spawn()
	if err := next.start(); err != nil {
		return err
	}
	ended := p.ended
	p.process = next
	select {
	case <-ended:
		return nil
	case <-next.ended:
		return fmt.Errorf("the process that was to take over ended")
	case <-time.After(40 * time.Second):
		return fmt.Errorf("the proxy did not end after another one had taken over")
	}
}

// endedWithOpenTransaction is its exit code when it has drained and something had not ended: a transaction that its client has left open.
const endedWithOpenTransaction = 3

// Stop lets it drain, and looks for what it must never have said.
func (p *Proxy) Stop() error {
	defer p.Relay.Close()
	if err := p.end(syscall.SIGTERM, 20*time.Second); err != nil {
		return err
	}
	if code := p.command.ProcessState.ExitCode(); code != 0 && code != endedWithOpenTransaction {
		return fmt.Errorf("the proxy ended with code %d", code)
	}
	content, err := os.ReadFile(p.log)
	if err == nil && bytes.Contains(content, []byte("panicked at")) {
		return fmt.Errorf("the proxy has panicked, as its log tells")
	}
	return err
}
