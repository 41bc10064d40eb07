package check

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"
)

// Step is a part of a transaction: a read of a list, or an append to it.
type Step struct {
	Key    string
	Append int64   `json:",omitempty"` // 0: a read
	Seen   []int64 `json:",omitempty"`
}

// Txn is one transaction. No value is appended twice, in any history.
type Txn struct {
	Client  string
	Steps   []Step
	Call    time.Duration
	Return  time.Duration
	Outcome Outcome // Refused: it was aborted, or nobody has ever asked for its commit
	Why     string  `json:",omitempty"`
}

func (t Txn) String() string {
	var steps []string
	for _, step := range t.Steps {
		if step.Append != 0 {
			steps = append(steps, fmt.Sprintf("append %d to %s", step.Append, step.Key))
		} else {
			steps = append(steps, fmt.Sprintf("%s is %v", step.Key, step.Seen))
		}
	}
	text := fmt.Sprintf("[%s at %s: %s]", t.Client, at(t.Call), strings.Join(steps, ", "))
	if t.Outcome != Done {
		text += fmt.Sprintf(" (%s: %s)", t.Outcome, t.Why)
	}
	return text
}

// Transactions checks lists that transactions read and append to, in the manner of Elle: the lists themselves say in which
// order their versions came, and so which transaction must come before which. Snapshot isolation allows no cycle but one
// with two anti-dependencies in a row. An edge also leads from what ended to what the same session began later, as
// sessions are causal; and to what anybody began later, among transactions that wrote: a majority has both, so a later
// one cannot have been written in ignorance of an earlier one. `finals` is what is left at the end, by key.
func Transactions(history []Txn, finals map[string][]int64) []Violation {
	c := &txnCheck{finals: finals, writer: map[version]int{}}
	c.txns = slices.Clone(history)
	sort.SliceStable(c.txns, func(i, j int) bool { return c.txns[i].Call < c.txns[j].Call })
	for i, t := range c.txns {
		for _, step := range t.Steps {
			if step.Append != 0 {
				c.writer[version{step.Key, step.Append}] = i
			}
		}
	}
	c.judgeFinals()
	c.judgeReads()
	// Edges out of lists that cannot be would say nothing.
	if len(c.found) == 0 {
		c.judgeCycles()
	}
	return c.found
}

type version struct {
	key   string
	value int64
}

type txnCheck struct {
	txns   []Txn
	finals map[string][]int64
	writer map[version]int
	found  []Violation
}

func (c *txnCheck) report(kind, key, format string, arguments ...any) {
	c.found = append(c.found, Violation{kind, key, fmt.Sprintf(format, arguments...)})
}

// happened tells whether a transaction is part of the history: it was committed, or nobody knows and its writes are there.
func (c *txnCheck) happened(i int) bool {
	t := c.txns[i]
	if t.Outcome != Unknown {
		return t.Outcome == Done
	}
	for _, step := range t.Steps {
		if step.Append != 0 && slices.Contains(c.finals[step.Key], step.Append) {
			return true
		}
	}
	return false
}

func (c *txnCheck) judgeFinals() {
	for key, list := range c.finals {
		seen := map[int64]bool{}
		for _, value := range list {
			writer, known := c.writer[version{key, value}]
			switch {
			case seen[value]:
				c.report("carried out twice", key, "%d stands twice in %v", value, list)
			case !known:
				c.report("never written", key, "%d is in %v", value, list)
			case c.txns[writer].Outcome == Refused:
				c.report("refused and carried out", key, "%d is in %v, and its transaction did not commit: %s", value, list, c.txns[writer])
			}
			seen[value] = true
		}
	}
	for i, t := range c.txns {
		if !c.happened(i) {
			continue
		}
		for _, step := range t.Steps {
			if step.Append != 0 && !slices.Contains(c.finals[step.Key], step.Append) {
				kind := "acknowledged and lost"
				if t.Outcome == Unknown {
					kind = "done in part"
				}
				c.report(kind, step.Key, "%d is not in %v: %s", step.Append, c.finals[step.Key], t)
			}
		}
	}
}

// judgeReads looks at each committed transaction by itself, and at whose writes it saw.
func (c *txnCheck) judgeReads() {
	for i, t := range c.txns {
		if !c.happened(i) {
			continue
		}
		lists := map[string][]int64{}
		known := map[string]bool{}
		for _, step := range t.Steps {
			switch {
			case step.Append != 0:
				lists[step.Key] = append(slices.Clone(lists[step.Key]), step.Append)
				continue
			case known[step.Key] && !slices.Equal(lists[step.Key], step.Seen):
				c.report("contradicts itself", step.Key, "%v is expected: %s", lists[step.Key], t)
			case !known[step.Key] && !isSuffix(lists[step.Key], step.Seen):
				c.report("own write not seen", step.Key, "%v is expected at the end: %s", lists[step.Key], t)
			case !known[step.Key]:
				c.judgeBase(t, step.Key, step.Seen[:len(step.Seen)-len(lists[step.Key])])
			}
			known[step.Key], lists[step.Key] = true, step.Seen
		}
	}
}

// judgeBase looks at what a transaction found that others had written.
func (c *txnCheck) judgeBase(t Txn, key string, base []int64) {
	seen := map[int64]bool{}
	for _, value := range base {
		writer, known := c.writer[version{key, value}]
		switch {
		case seen[value]:
			c.report("carried out twice", key, "%d: %s", value, t)
		case !known:
			c.report("never written", key, "%d: %s", value, t)
		case c.txns[writer].Outcome == Refused:
			c.report("G1a, aborted read", key, "%d, read by %s, is of %s", value, t, c.txns[writer])
		}
		seen[value] = true
	}
	if len(base) > 0 {
		last := base[len(base)-1]
		if writer, known := c.writer[version{key, last}]; known {
			if own := c.txns[writer].appended(key); own[len(own)-1] != last {
				c.report("G1b, intermediate read", key, "%d, read by %s, is not the last of %s", last, t, c.txns[writer])
			}
		}
	}
	if !isPrefix(base, c.finals[key]) {
		c.report("seen and lost", key, "%s saw %v, and at the end there is %v", t, base, c.finals[key])
	}
}

func (t Txn) appended(key string) []int64 {
	var values []int64
	for _, step := range t.Steps {
		if step.Key == key && step.Append != 0 {
			values = append(values, step.Append)
		}
	}
	return values
}

// base is what the transaction found in a list that it read; false if it did not.
func (t Txn) base(key string) ([]int64, bool) {
	own := 0
	for _, step := range t.Steps {
		switch {
		case step.Key != key:
		case step.Append != 0:
			own++
		case len(step.Seen) >= own:
			return step.Seen[:len(step.Seen)-own], true
		}
	}
	return nil, false
}

func isSuffix(end, whole []int64) bool {
	return len(end) <= len(whole) && slices.Equal(end, whole[len(whole)-len(end):])
}
