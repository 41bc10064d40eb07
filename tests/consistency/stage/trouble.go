package stage

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"syscall"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// Theatre is everything that trouble can befall. Without a proxy its clients go to the set.
type Theatre struct {
	Set   *Set
	Proxy *Proxy
	Log   func(format string, arguments ...any)
}

// trouble has a name, how often it comes, and what happens until it is over.
type trouble struct {
	name   string
	weight int
	// There is nothing to befall without a proxy.
	ofProxy bool
	happen  func(ctx context.Context, t *Theatre, d draw) error
}

// draw is what chance decides about one trouble; all of it is drawn, whatever trouble it is, so that a seed means the
// same with and without a proxy.
type draw struct {
	lasts time.Duration
	other int // 1 or 2: which secondary
	times int
	snip  Snip
	how   int
}

// likely are snips by how much they leave in doubt.
var likely = []Snip{LoseReply, LoseReply, LoseReply, HalfReply, HalfRequest, EndRequests}

var troubles = []trouble{
	{"the primary is killed", 3, false, func(ctx context.Context, t *Theatre, d draw) error { return t.kill(ctx, d, 0) }},
	{"a secondary is killed", 1, false, func(ctx context.Context, t *Theatre, d draw) error { return t.kill(ctx, d, d.other) }},
	{"all members are killed", 1, false, func(ctx context.Context, t *Theatre, d draw) error { return t.kill(ctx, d, 0, 1, 2) }},
	{"the primary steps down", 3, false, stepDown},
	{"the primary is stopped", 3, false, func(ctx context.Context, t *Theatre, d draw) error { return t.suspend(ctx, d, 0) }},
	{"a secondary is stopped", 1, false, func(ctx context.Context, t *Theatre, d draw) error { return t.suspend(ctx, d, d.other) }},
	{"the primary is cut off from the others", 3, false, cutOff},
	{"the primary is alone", 2, false, isolate},
	{"clients are cut off from the primary", 2, false, cutClients},
	{"connections to the primary break in the middle", 14, false, snipServers},
	{"clients are cut off from the proxy", 2, false, cutProxy},
	{"connections to the proxy break in the middle", 4, false, snipProxy},
	{"the proxy is restarted", 1, true, restartProxy},
	{"the proxy is killed", 1, true, killProxy},
	{"the proxy is stopped", 1, true, suspendProxy},
	{"the proxy pauses", 1, true, pauseProxy},
	{"another proxy takes over", 1, true, takeOver},
}

// Run makes trouble until the time is over, and heals everything. It returns how often each trouble came.
func (t *Theatre) Run(ctx context.Context, random *rand.Rand, until time.Time) (map[string]int, error) {
	counts := map[string]int{}
	total := 0
	for _, it := range troubles {
		total += it.weight
	}
	for time.Now().Before(until) && ctx.Err() == nil {
		calm := time.Duration(300+random.IntN(1700)) * time.Millisecond
		it := pick(random.IntN(total))
		d := draw{
			lasts: time.Duration(300+random.IntN(4200)) * time.Millisecond,
			other: 1 + random.IntN(2), times: 1 + random.IntN(24), snip: likely[random.IntN(len(likely))], how: random.IntN(2),
		}
		time.Sleep(calm)
		if it.ofProxy && t.Proxy == nil {
			continue
		}
		began := time.Now()
		if err := it.happen(ctx, t, d); err != nil {
			return counts, fmt.Errorf("%s: %w", it.name, err)
		}
		t.Log("%s: over after %.1f s", it.name, time.Since(began).Seconds())
		counts[it.name]++
	}
	_, err := t.Set.Primary(ctx)
	if err == nil && t.Proxy != nil {
		err = t.Proxy.ready(ctx)
	}
	return counts, err
}

func pick(ticket int) trouble {
	for _, it := range troubles {
		if ticket < it.weight {
			return it
		}
		ticket -= it.weight
	}
	panic("a ticket is below the sum of all weights")
}

// members are numbered from the primary on.
func (t *Theatre) members(ctx context.Context, offsets ...int) ([]*Member, error) {
	primary, err := t.Set.Primary(ctx)
	var found []*Member
	for _, offset := range offsets {
		found = append(found, t.Set.Members[(primary+offset)%Members])
	}
	return found, err
}

func (t *Theatre) kill(ctx context.Context, d draw, offsets ...int) error {
	members, err := t.members(ctx, offsets...)
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	for _, m := range members {
		all.Go(func() { _ = m.end(syscall.SIGKILL, 10*time.Second) })
	}
	all.Wait()
	time.Sleep(d.lasts)
	for _, m := range members {
		if err := m.start(); err != nil {
			return err
		}
	}
	return nil
}

func stepDown(ctx context.Context, t *Theatre, d draw) error {
	command := bson.D{{Key: "replSetStepDown", Value: 5}, {Key: "secondaryCatchUpPeriodSecs", Value: 2}, {Key: "force", Value: true}}
	// The next one may be elected between the look and the command.
	return eventually(ctx, 30*time.Second, func() error {
		members, err := t.members(ctx, 0)
		if err == nil {
			err = members[0].run(ctx, command)
		}
		return err
	})
}

func (t *Theatre) suspend(ctx context.Context, d draw, offset int) error {
	members, err := t.members(ctx, offset)
	if err != nil {
		return err
	}
	members[0].signal(syscall.SIGSTOP)
	time.Sleep(d.lasts)
	members[0].signal(syscall.SIGCONT)
	return nil
}

// cutOff leaves clients with a primary that knows of no other: it goes on as one until it notices.
func cutOff(ctx context.Context, t *Theatre, d draw) error {
	return t.cut(ctx, d, false)
}

func isolate(ctx context.Context, t *Theatre, d draw) error { return t.cut(ctx, d, true) }

func (t *Theatre) cut(ctx context.Context, d draw, clientsToo bool) error {
	members, err := t.members(ctx, 0, 1, 2)
	if err != nil {
		return err
	}
	set := func(mode Mode) {
		for _, other := range members[1:] {
			members[0].Relay.Set(other.Port, mode)
			other.Relay.Set(members[0].Port, mode)
		}
		if clientsToo {
			members[0].Relay.Set(Clients, mode)
		}
	}
	d.trouble(set)
	return nil
}

// trouble resets or holds; what was held comes late, or is reset at last.
func (d draw) trouble(set func(Mode)) {
	first := Held
	if d.how == 0 {
		first = Shut
	}
	set(first)
	time.Sleep(d.lasts)
	if d.times%2 == 0 {
		set(Shut)
	}
	set(Open)
}

func cutClients(ctx context.Context, t *Theatre, d draw) error {
	members, err := t.members(ctx, 0)
	if err != nil {
		return err
	}
	d.trouble(func(mode Mode) { members[0].Relay.Set(Clients, mode) })
	return nil
}

// snipServers is the trouble that leaves most in doubt, so it comes often and is soon over.
func snipServers(ctx context.Context, t *Theatre, d draw) error {
	members, err := t.members(ctx, 0)
	if err != nil {
		return err
	}
	d.snipAt(members[0].Relay)
	return nil
}

func (d draw) snipAt(relay *Relay) {
	relay.Snip(Clients, d.snip, d.times, 1+d.how*2)
	time.Sleep(d.lasts / 4)
	relay.Set(Clients, Open)
}

// Without a proxy its clients are those of the servers.
func cutProxy(ctx context.Context, t *Theatre, d draw) error {
	if t.Proxy != nil {
		d.trouble(func(mode Mode) { t.Proxy.Relay.Set(Clients, mode) })
		return nil
	}
	d.trouble(func(mode Mode) {
		for _, m := range t.Set.Members {
			m.Relay.Set(Clients, mode)
		}
	})
	return nil
}

func snipProxy(ctx context.Context, t *Theatre, d draw) error {
	if t.Proxy == nil {
		return snipServers(ctx, t, d)
	}
	d.snipAt(t.Proxy.Relay)
	return nil
}

func restartProxy(ctx context.Context, t *Theatre, d draw) error {
	if err := t.Proxy.end(syscall.SIGTERM, 20*time.Second); err != nil {
		return err
	}
	return t.Proxy.restart(ctx)
}

func killProxy(ctx context.Context, t *Theatre, d draw) error {
	_ = t.Proxy.end(syscall.SIGKILL, 10*time.Second)
	return t.Proxy.restart(ctx)
}

func (p *Proxy) restart(ctx context.Context) error {
	if err := p.start(); err != nil {
		return err
	}
	return p.ready(ctx)
}

func suspendProxy(_ context.Context, t *Theatre, d draw) error {
	t.Proxy.signal(syscall.SIGSTOP)
	time.Sleep(d.lasts)
	t.Proxy.signal(syscall.SIGCONT)
	return nil
}

func pauseProxy(ctx context.Context, t *Theatre, d draw) error {
	if err := t.Proxy.ask(ctx, http.MethodPost, "/admin/pause"); err != nil {
		return err
	}
	time.Sleep(d.lasts)
	return t.Proxy.ask(ctx, http.MethodPost, "/admin/resume")
}

func takeOver(_ context.Context, t *Theatre, d draw) error {
	return t.Proxy.takeOver()
}
