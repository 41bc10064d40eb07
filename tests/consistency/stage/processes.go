package stage

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// process is one that is started again and again, with its output in one file.
type process struct {
	path string
	args []string
	log  string

	mutex   sync.Mutex
	command *exec.Cmd
	ended   chan struct{}
}

func (p *process) start() error {
	output, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer output.Close()
	command := exec.Command(p.path, p.args...)
	command.Stdout, command.Stderr = output, output
	// Whatever becomes of this program, nothing stays behind.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_ = command.Wait()
		close(ended)
	}()
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.command, p.ended = command, ended
	return nil
}

func (p *process) signal(signal syscall.Signal) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.command != nil {
		_ = p.command.Process.Signal(signal)
	}
}

// end sends the signal and waits; what does not end in time is killed, and that is an error.
func (p *process) end(signal syscall.Signal, within time.Duration) error {
	p.mutex.Lock()
	command, ended := p.command, p.ended
	p.mutex.Unlock()
	if command == nil {
		return nil
	}
	_ = command.Process.Signal(signal)
	select {
	case <-ended:
		return nil
	case <-time.After(within):
		_ = command.Process.Signal(syscall.SIGKILL)
		<-ended
		return fmt.Errorf("%s did not end within %s of signal %s", filepath.Base(p.path), within, signal)
	}
}

// freePorts are free now; nobody else takes them so soon.
func freePorts(count int) ([]int, error) {
	var ports []int
	for range count {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer listener.Close()
		ports = append(ports, listener.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// eventually asks until there is no error, or the time is over.
func eventually(ctx context.Context, within time.Duration, ask func() error) error {
	deadline := time.Now().Add(within)
	for {
		err := ask()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("not within %s: %w", within, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
