package stage

import (
	"io"
	"net"
	"testing"
	"time"
)

// echo is a server that sends back what it gets, and tells what it got.
func echo(t *testing.T) (string, <-chan string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	got := make(chan string, 100)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				buffer := make([]byte, 1024)
				for {
					n, err := conn.Read(buffer)
					if err != nil {
						got <- "end: " + err.Error()
						return
					}
					got <- string(buffer[:n])
					_, _ = conn.Write(buffer[:n])
				}
			}()
		}
	}()
	return listener.Addr().String(), got
}

func dial(t *testing.T, relay *Relay) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", relay.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	return conn
}

// say sends and returns what comes back until there is as much, or the end.
func say(conn net.Conn, words string) (string, error) {
	if _, err := conn.Write([]byte(words)); err != nil {
		return "", err
	}
	back := make([]byte, len(words))
	n, err := io.ReadFull(conn, back)
	return string(back[:n]), err
}

const fromMember = "hello hostInfo\x00\x10\x00\x00\x00somewhere:27018\x00"

func TestRelay(t *testing.T) {
	server, got := echo(t)
	relay, err := NewRelay(server)
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Close()
	alive := func(conn net.Conn, words string) {
		t.Helper()
		if back, err := say(conn, words); back != words || err != nil {
			t.Fatalf("%q, %v", back, err)
		}
		if heard := <-got; heard != words {
			t.Fatalf("the server got %q", heard)
		}
	}

	client, member := dial(t, relay), dial(t, relay)
	alive(client, "one")
	alive(member, fromMember)

	// What is held arrives, late; others are not concerned.
	relay.Set(Clients, Held)
	if _, err := client.Write([]byte("two")); err != nil {
		t.Fatal(err)
	}
	alive(member, "three")
	relay.Set(Clients, Open)
	if heard := <-got; heard != "two" {
		t.Fatalf("the server got %q", heard)
	}

	// A member is reset, and the client goes on.
	relay.Set("27018", Shut)
	if back, err := say(member, "four"); err == nil {
		t.Fatalf("%q from a connection that was to be reset", back)
	}
	<-got
	if back, err := io.ReadAll(io.LimitReader(client, 3)); string(back) != "two" || err != nil {
		t.Fatalf("%q, %v", back, err)
	}
	alive(client, "five")

	const command, half = "six, lsid\x00!!", "six, l"
	for _, test := range []struct {
		snip       Snip
		heard, got string
	}{{LoseReply, command, ""}, {HalfRequest, half, half}, {HalfReply, command, half}, {EndRequests, command, command}} {
		relay.Snip(Clients, test.snip, 1, 1)
		conn := dial(t, relay)
		alive(conn, "hello")
		back, err := say(conn, command)
		if heard := <-got; heard != test.heard || back != test.got {
			t.Errorf("snip %d: the server got %q, the client %q, %v", test.snip, heard, back, err)
		}
		if end := <-got; end[:4] != "end:" {
			t.Errorf("snip %d: the server's connection goes on with %q", test.snip, end)
		}
	}
	alive(client, "seven")
}
