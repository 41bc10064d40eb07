// Consistency under chaos: clients work on a replica set, through the proxy or directly, while trouble befalls all of it;
// then what they saw is checked. docs/testing.md explains it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"go.mongodb.org/mongo-driver/v2/bson"

	"mongomux/consistency/check"
)

// workload is what some workers do, and how what they saw is judged.
type workload struct {
	name    string
	kind    string // what --workload says
	workers int
	width   int    // documents at a time
	each    int64  // operations on these, until the next ones
	field   string // of a document, with what it begins with
	empty   any
	work    func(*worker, context.Context)
	judge   func(*history) []check.Violation
}

func registers(h *history) []check.Violation { return check.Registers(h.Ops) }
func lists(h *history) []check.Violation     { return check.Lists(h.Ops) }

func transactions(h *history) []check.Violation {
	finals := map[string][]int64{}
	for _, op := range h.Ops {
		finals[op.Key] = op.Seen
	}
	return check.Transactions(h.Txns, finals)
}

var workloads = []workload{
	{"register", "register", 5, 3, 150, "v", int64(0), (*worker).registers, registers},
	{"append", "append", 4, 2, 150, "l", bson.A{}, (*worker).lists, lists},
	{"causal", "append", 3, 2, 150, "l", bson.A{}, (*worker).causal, lists},
	{"txn", "txn", 6, 5, 400, "l", bson.A{}, (*worker).transactions, transactions},
}

type flags struct {
	mongod, mongomux, workload, retry, keep, check, adya string
	seconds                                              int
	seed                                                 uint64
	direct                                               bool
}

func main() {
	var f flags
	flag.StringVar(&f.mongod, "mongod", "", "the server")
	flag.StringVar(&f.mongomux, "mongomux", "", "the proxy")
	flag.StringVar(&f.workload, "workload", "all", "register, append, txn or all")
	flag.StringVar(&f.retry, "retry", "driver", "the proxy's `retry`: driver or proxy")
	flag.StringVar(&f.keep, "keep", "", "where histories and logs are left; otherwise only when something is wrong")
	flag.StringVar(&f.check, "check", "", "judge the histories in this directory, and do nothing else")
	flag.StringVar(&f.adya, "adya", "", "another checker, for transactions")
	flag.IntVar(&f.seconds, "seconds", 30, "how long there is trouble")
	flag.Uint64Var(&f.seed, "seed", rand.Uint64N(1_000_000), "of the troubles")
	flag.BoolVar(&f.direct, "direct", false, "without the proxy")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	good, err := run(ctx, f)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests/consistency/run:", err)
		os.Exit(1)
	}
	if !good {
		os.Exit(1)
	}
}

func (f flags) selected() []workload {
	return slices.DeleteFunc(slices.Clone(workloads), func(it workload) bool { return f.workload != "all" && f.workload != it.kind })
}

func run(ctx context.Context, f flags) (bool, error) {
	selected := f.selected()
	if len(selected) == 0 {
		return false, fmt.Errorf("--workload: there is no %q", f.workload)
	}
	if f.check != "" {
		return checkAgain(f, selected)
	}
	directory, err := os.MkdirTemp("", "mongomux-consistency-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(directory)
	how := "through the proxy"
	again := fmt.Sprintf("tests/consistency/run --seconds %d --seed %d --workload %s --retry %s", f.seconds, f.seed, f.workload, f.retry)
	if f.direct {
		how, again = "directly", again+" --direct"
	}
	fmt.Printf("%s, %d s of trouble; the same troubles again: %s\n", how, f.seconds, again)

	p, err := perform(ctx, f, selected, directory)
	good := err == nil && p.report(selected, f.adya)
	if !good || f.keep != "" {
		err = errors.Join(err, keep(f.keep, directory, p))
	}
	return good, err
}
