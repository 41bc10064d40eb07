package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"mongomux/consistency/check"
)

// most is how many violations of a kind are told; the others follow from few as a rule.
const most = 3

// report tells what was done and what is wrong; true if nothing is.
func (p *performance) report(selected []workload, adya string) bool {
	fmt.Println()
	for _, name := range sorted(p.troubles) {
		fmt.Printf("%4d  %s\n", p.troubles[name], name)
	}
	if p.pools != nil {
		fmt.Printf("%4d  elections, %d rollbacks\n", p.elections, p.rollbacks)
	}
	fmt.Printf("\n%-10s %-8s %9s %9s %9s\n", "workload", "what", "done", "refused", "unknown")
	good := true
	for _, it := range selected {
		good = p.histories[it.name].report(it) && good
	}
	if h := p.histories["txn"]; h != nil && adya != "" {
		if err := secondOpinion(adya, h); err != nil {
			p.wrong = append(p.wrong, fmt.Sprintf("txn, to another checker: %v", err))
		} else {
			fmt.Println("txn        ok to another checker")
		}
	}
	for _, wrong := range p.wrong {
		fmt.Println("WRONG:", wrong)
		good = false
	}
	return good
}

func (h *history) report(it workload) bool {
	counts := map[string]map[check.Outcome]int{}
	count := func(what string, outcome check.Outcome) {
		if counts[what] == nil {
			counts[what] = map[check.Outcome]int{}
		}
		counts[what][outcome]++
	}
	keys := 0
	for _, op := range h.Ops {
		if op.Client == check.Final {
			keys++
		} else {
			count(op.Kind, op.Outcome)
		}
	}
	for _, txn := range h.Txns {
		count("txn", txn.Outcome)
	}
	for _, what := range sorted(counts) {
		of := counts[what]
		fmt.Printf("%-10s %-8s %9d %9d %9d\n", it.name, what, of[check.Done], of[check.Refused], of[check.Unknown])
	}
	found := append(it.judge(h), h.Strange...)
	if len(found) == 0 {
		fmt.Printf("%-10s ok, on %d keys\n", it.name, keys)
		return true
	}
	kinds := map[string]int{}
	for _, violation := range found {
		if kinds[violation.Kind]++; kinds[violation.Kind] <= most {
			fmt.Printf("WRONG: %s: %s\n", it.name, violation)
		}
	}
	for _, kind := range sorted(kinds) {
		fmt.Printf("%-10s %5d WRONG: %s\n", it.name, kinds[kind], kind)
	}
	return false
}

func sorted[T any](of map[string]T) []string {
	var names []string
	for name := range of {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// keep moves histories and logs to where they can be looked at.
func keep(where, directory string, p *performance) error {
	if where == "" {
		var err error
		if where, err = os.MkdirTemp("", "mongomux-consistency-failed-"); err != nil {
			return err
		}
	} else if err := os.MkdirAll(where, 0o755); err != nil {
		return err
	}
	for name, history := range p.histories {
		file, err := os.Create(filepath.Join(where, name+".json"))
		if err != nil {
			return err
		}
		defer file.Close()
		if err := json.NewEncoder(file).Encode(history); err != nil {
			return err
		}
	}
	logs, err := filepath.Glob(filepath.Join(directory, "*.log"))
	if err != nil {
		return err
	}
	for _, log := range logs {
		content, err := os.ReadFile(log)
		if err == nil {
			err = os.WriteFile(filepath.Join(where, filepath.Base(log)), content, 0o644)
		}
		if err != nil {
			return err
		}
	}
	fmt.Printf("histories and logs: %s; judged again by: tests/consistency/run --check %s\n", where, where)
	return nil
}

// checkAgain judges histories that were kept.
func checkAgain(f flags, selected []workload) (bool, error) {
	p := &performance{histories: map[string]*history{}}
	var there []workload
	for _, it := range selected {
		content, err := os.ReadFile(filepath.Join(f.check, it.name+".json"))
		if os.IsNotExist(err) {
			continue
		}
		h := &history{}
		if err == nil {
			err = json.Unmarshal(content, h)
		}
		if err != nil {
			return false, err
		}
		if !slices.ContainsFunc(h.Ops, func(op check.Op) bool { return op.Client == check.Final }) {
			return false, fmt.Errorf("%s was cut short: it does not say what was left at the end", it.name)
		}
		p.histories[it.name] = h
		there = append(there, it)
	}
	if len(there) == 0 {
		return false, fmt.Errorf("there are no histories in %s", f.check)
	}
	return p.report(there, f.adya), nil
}
