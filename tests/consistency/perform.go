package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"mongomux/consistency/stage"
)

// longestEnd is how long operations may take to end once all trouble is over.
const longestEnd = 40 * time.Second

// late is what was sent before may take to arrive.
const late = 2 * time.Second

// fastest is more than a worker does in a second: there are documents for as much.
const fastest = 60

// performance is all that was done and seen.
type performance struct {
	began     time.Time
	histories map[string]*history
	pools     map[string]*keys
	troubles  map[string]int
	// How often members held an election, and took writes back.
	elections, rollbacks int
	wrong                []string
}

func (p *performance) say(format string, arguments ...any) {
	fmt.Printf("%7.1f s  %s\n", time.Since(p.began).Seconds(), fmt.Sprintf(format, arguments...))
}

// perform raises the stage, lets workers work while there is trouble, and reads what is left.
func perform(ctx context.Context, f flags, selected []workload, directory string) (*performance, error) {
	p := &performance{began: time.Now(), histories: map[string]*history{}, pools: map[string]*keys{}}
	set, err := stage.StartSet(ctx, f.mongod, directory)
	if set != nil {
		defer set.Stop()
	}
	if err != nil {
		return p, err
	}
	theatre := &stage.Theatre{Set: set, Log: p.say}
	uri := set.URI()
	if !f.direct {
		theatre.Proxy, err = stage.StartProxy(ctx, f.mongomux, directory, set, f.retry)
		if theatre.Proxy != nil {
			defer theatre.Proxy.Stop()
		}
		if err != nil {
			return p, err
		}
		uri = theatre.Proxy.URI()
	}
	plain, err := mongo.Connect(options.Client().ApplyURI(set.URI()))
	if err != nil {
		return p, err
	}
	defer plain.Disconnect(context.Background())
	if err := p.prepare(ctx, f, selected, plain); err != nil {
		return p, fmt.Errorf("documents cannot be made: %w", err)
	}
	if err := p.act(ctx, f, selected, theatre, uri); err != nil {
		return p, err
	}
	p.elections, p.rollbacks = set.Upheavals()
	for name, keys := range p.pools {
		if err := keys.read(ctx, plain, p.histories[name]); err != nil {
			return p, fmt.Errorf("what is left cannot be read: %w", err)
		}
	}
	if theatre.Proxy != nil {
		if err := theatre.Proxy.Stop(); err != nil {
			p.wrong = append(p.wrong, err.Error())
		}
	}
	return p, nil
}

func (p *performance) prepare(ctx context.Context, f flags, selected []workload, plain *mongo.Client) error {
	var last atomic.Int64
	var over atomic.Bool
	for _, it := range selected {
		p.histories[it.name] = &history{begin: p.began, last: &last, over: &over, hiddenRetries: !f.direct && f.retry == "proxy"}
		rounds := 2 + f.seconds*it.workers*fastest/int(it.each)
		keys := &keys{name: it.name, field: it.field, empty: it.empty, count: it.width * rounds, width: it.width, each: it.each}
		p.pools[it.name] = keys
		if err := keys.make(ctx, plain); err != nil {
			return err
		}
	}
	return nil
}

// act ends when every worker has.
func (p *performance) act(ctx context.Context, f flags, selected []workload, theatre *stage.Theatre, uri string) error {
	// What was begun ends by itself; only what does not is cut off.
	lasting, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var clients []*mongo.Client
	for _, adjust := range drivers {
		client, err := connect(uri, adjust)
		if err != nil {
			return err
		}
		defer client.Disconnect(context.Background())
		clients = append(clients, client)
	}
	var workers sync.WaitGroup
	for _, it := range selected {
		for i := range it.workers {
			w := &worker{
				name: fmt.Sprintf("%s-%d", it.name, i), client: clients[i%len(clients)], keys: p.pools[it.name],
				history: p.histories[it.name], random: rand.New(rand.NewPCG(f.seed, uint64(i))),
			}
			workers.Go(func() { it.work(w, lasting) })
		}
	}
	var wrong error
	p.troubles, wrong = theatre.Run(ctx, rand.New(rand.NewPCG(f.seed, f.seed)), time.Now().Add(time.Duration(f.seconds)*time.Second))
	time.Sleep(late)
	for _, history := range p.histories {
		history.over.Store(true)
	}
	ended := make(chan struct{})
	go func() {
		workers.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(longestEnd):
		p.wrong = append(p.wrong, fmt.Sprintf("operations have not ended %s after the last trouble", longestEnd))
		cut()
		<-ended
	}
	if wrong != nil {
		p.wrong = append(p.wrong, wrong.Error())
	}
	return ctx.Err()
}
