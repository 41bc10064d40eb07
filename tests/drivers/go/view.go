package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"
)

// sent is a command as the driver sent it, to be read after the driver has used its buffer again.
type sent struct {
	name    string
	command bson.Raw
}

// A view is what one client tells about itself.
type view struct {
	mutex            sync.Mutex
	changed          *sync.Cond
	topology         event.TopologyDescription
	poolsCleared     int
	serversLost      []string
	heartbeatsFailed []string
	commandsSent     []sent
	failures         []string
	recording        bool
	started          map[string]int
}

func newView() *view {
	v := &view{started: map[string]int{}}
	v.changed = sync.NewCond(&v.mutex)
	return v
}

// update changes the view under its lock.
func (v *view) update(change func()) {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	change()
	v.changed.Broadcast()
}

func (v *view) commands() *event.CommandMonitor {
	return &event.CommandMonitor{
		Started: func(_ context.Context, ev *event.CommandStartedEvent) {
			v.update(func() {
				v.started[ev.CommandName]++
				if v.recording {
					v.commandsSent = append(v.commandsSent, sent{ev.CommandName, append(bson.Raw{}, ev.Command...)})
				}
			})
		},
		Failed: func(_ context.Context, ev *event.CommandFailedEvent) {
			v.update(func() {
				if v.recording {
					v.failures = append(v.failures, ev.CommandName)
				}
			})
		},
	}
}

func (v *view) pool() *event.PoolMonitor {
	return &event.PoolMonitor{Event: func(ev *event.PoolEvent) {
		if ev.Type == event.ConnectionPoolCleared {
			v.update(func() { v.poolsCleared++ })
		}
	}}
}

func (v *view) servers() *event.ServerMonitor {
	return &event.ServerMonitor{
		TopologyDescriptionChanged: func(ev *event.TopologyDescriptionChangedEvent) {
			v.update(func() { v.topology = ev.NewDescription })
		},
		ServerDescriptionChanged: func(ev *event.ServerDescriptionChangedEvent) {
			if ev.PreviousDescription.Kind != "Unknown" && ev.NewDescription.Kind == "Unknown" {
				v.update(func() { v.serversLost = append(v.serversLost, string(ev.Address)) })
			}
		},
		ServerHeartbeatFailed: func(ev *event.ServerHeartbeatFailedEvent) {
			v.update(func() { v.heartbeatsFailed = append(v.heartbeatsFailed, fmt.Sprint(ev.Failure)) })
		},
	}
}

// record runs the operation and returns which commands were sent meanwhile, and the names of those that failed.
func (v *view) record(operation func()) (commands []sent, failures []string) {
	v.update(func() { v.recording, v.commandsSent, v.failures = true, nil, nil })
	defer v.update(func() { v.recording = false })
	operation()
	v.update(func() { commands, failures = v.commandsSent, v.failures })
	return commands, failures
}

// count is how many commands of this name were sent until now.
func (v *view) count(command string) (n int) {
	v.update(func() { n = v.started[command] })
	return n
}

// await waits until more than `before` commands of this name were sent.
func (v *view) await(command string, before int) {
	late := time.AfterFunc(10*time.Second, func() { v.changed.Broadcast() })
	defer late.Stop()
	deadline := time.Now().Add(10 * time.Second)
	v.mutex.Lock()
	defer v.mutex.Unlock()
	for v.started[command] <= before {
		holds(time.Now().Before(deadline), "no "+command+" was sent within 10 s")
		v.changed.Wait()
	}
}

func (v *view) verifyCalm() {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	same(len(v.serversLost), 0, fmt.Sprintf("servers lost (%v)", v.serversLost))
	same(v.poolsCleared, 0, "pools cleared")
	same(len(v.heartbeatsFailed), 0, fmt.Sprintf("heartbeats failed (%v)", v.heartbeatsFailed))
}

func named(commands []sent, name string) []bson.Raw {
	var found []bson.Raw
	for _, s := range commands {
		if s.name == name {
			found = append(found, s.command)
		}
	}
	return found
}
