// Package stage is what the clients stand before: three servers, what is between them and the clients, and trouble.
package stage

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"regexp"
	"sync"
	"sync/atomic"
	"time"
)

// Mode is what a relay does with the connections of somebody.
type Mode int

const (
	// Open passes everything on.
	Open Mode = iota
	// Held keeps what comes, and new connections, until it is over.
	Held
	// Shut resets them.
	Shut
)

// Snip is what happens to the next connection that carries a command of a client. Handshakes and monitoring have no session.
type Snip int

const (
	// LoseReply resets both sides when a reply is on its way, so the command is done and nobody hears of it.
	LoseReply Snip = iota
	// HalfRequest passes on half of what the client sends, and resets both sides.
	HalfRequest
	// HalfReply passes on half of what the server sends, and ends the client's side as if that were all.
	HalfReply
	// EndRequests tells the server that the client sends no more, as a half-closed socket does.
	EndRequests
)

func (s Snip) ofRequests() bool { return s == HalfRequest || s == EndRequests }

// snips are those that are still to come.
type snips struct {
	snip         Snip
	times, oneIn int
}

// Clients is where connections come from that are not those of members.
const Clients = "clients"

// Relay is in front of one server. Members tell who they are in their first message, so that trouble may concern only some.
type Relay struct {
	listener net.Listener
	target   string

	mutex   sync.Mutex
	changed *sync.Cond
	modes   map[string]Mode
	snips   map[string]*snips
	links   map[*link]struct{}
}

type link struct {
	from           string
	client, server net.Conn
	carries        atomic.Bool // the last request was a command of a client
}

// inSession is the field by which those are known.
var inSession = []byte("lsid\x00")

// NewRelay listens on a port of its own.
func NewRelay(target string) (*Relay, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Relay{listener: listener, target: target, modes: map[string]Mode{}, snips: map[string]*snips{}, links: map[*link]struct{}{}}
	r.changed = sync.NewCond(&r.mutex)
	go r.accept()
	return r, nil
}

// Address is what its clients connect to.
func (r *Relay) Address() string { return r.listener.Addr().String() }

// Set says what becomes of connections from there.
func (r *Relay) Set(from string, mode Mode) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.modes[from] = mode
	if mode == Open {
		delete(r.snips, from)
	}
	for l := range r.links {
		if l.from == from && mode == Shut {
			l.reset()
		}
	}
	r.changed.Broadcast()
}

// Snip lets this happen to so many connections from there, one in `oneIn` by chance: what is sent again after it may pass.
func (r *Relay) Snip(from string, snip Snip, times, oneIn int) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.snips[from] = &snips{snip, times, oneIn}
}

// Close ends all.
func (r *Relay) Close() {
	_ = r.listener.Close()
	r.mutex.Lock()
	defer r.mutex.Unlock()
	for l := range r.links {
		l.reset()
	}
}

func (r *Relay) accept() {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return
		}
		go r.serve(client)
	}
}

// A member says in its hello where it listens.
var member = regexp.MustCompile(`hostInfo\x00.{4}[^\x00]*:([0-9]+)\x00`)

func (r *Relay) serve(client net.Conn) {
	first := make([]byte, 64*1024)
	n, err := client.Read(first)
	if err != nil {
		_ = client.Close()
		return
	}
	from := Clients
	if match := member.FindSubmatch(first[:n]); match != nil {
		from = string(match[1])
	}
	server, err := net.DialTimeout("tcp", r.target, 5*time.Second)
	if err != nil {
		(&link{client: client, server: client}).reset()
		return
	}
	l := &link{from: from, client: client, server: server}
	r.mutex.Lock()
	r.links[l] = struct{}{}
	r.mutex.Unlock()
	done := make(chan struct{})
	go func() {
		r.pump(l, server, client, false, nil)
		close(done)
	}()
	r.pump(l, client, server, true, first[:n])
	<-done
	r.mutex.Lock()
	delete(r.links, l)
	r.mutex.Unlock()
	_ = client.Close()
	_ = server.Close()
}

// pump carries one direction until it ends; an end is passed on as an end, so that the other direction may go on.
func (r *Relay) pump(l *link, from, to net.Conn, requests bool, pending []byte) {
	buffer := make([]byte, 64*1024)
	for {
		if len(pending) > 0 {
			if !r.pass(l, to, requests, pending) {
				return
			}
		}
		n, err := from.Read(buffer)
		pending = buffer[:n]
		if n == 0 && err != nil {
			if err == io.EOF {
				_ = to.(*net.TCPConn).CloseWrite()
			} else {
				l.reset()
			}
			return
		}
	}
}

// pass writes a piece on, when and as far as it may.
func (r *Relay) pass(l *link, to net.Conn, requests bool, piece []byte) bool {
	if requests {
		l.carries.Store(bytes.Contains(piece, inSession))
	}
	mode, snip := r.admits(l, requests)
	if mode == Shut {
		l.reset()
		return false
	}
	switch snip {
	case nil:
		_, err := to.Write(piece)
		return err == nil
	default:
		switch *snip {
		case HalfRequest:
			_, _ = to.Write(piece[:len(piece)/2])
			// What was written has to arrive before the reset that follows it.
			time.Sleep(10 * time.Millisecond)
		case HalfReply:
			_, _ = to.Write(piece[:len(piece)/2])
			_ = to.Close()
		case EndRequests:
			_, _ = to.Write(piece)
			_ = to.(*net.TCPConn).CloseWrite()
			return false
		case LoseReply:
		}
		l.reset()
		return false
	}
}

// admits waits until pieces from there are let on, and takes the snip that is meant for this direction.
func (r *Relay) admits(l *link, requests bool) (Mode, *Snip) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	from := l.from
	for r.modes[from] == Held {
		r.changed.Wait()
	}
	if next := r.snips[from]; next != nil && next.times > 0 && l.carries.Load() {
		if requests == next.snip.ofRequests() && rand.IntN(next.oneIn) == 0 {
			next.times--
			return r.modes[from], &next.snip
		}
	}
	return r.modes[from], nil
}

// reset ends both sides at once, with nothing said.
func (l *link) reset() {
	for _, conn := range []net.Conn{l.client, l.server} {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
}
