package check

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// op is an operation from one second to another on the one key, done.
func op(client, kind string, from, until int, value int64, seen ...int64) Op {
	return Op{Client: client, Kind: kind, Key: "k", Value: value, Seen: seen, Call: time.Duration(from) * time.Second,
		Return: time.Duration(until) * time.Second, Outcome: Done}
}

func cas(client string, from, until int, old, value int64) Op {
	swapped := op(client, Cas, from, until, value)
	swapped.Old = old
	return swapped
}

func with(outcome Outcome, op Op) Op {
	op.Outcome = outcome
	return op
}

func kinds(found []Violation) string {
	var names []string
	for _, violation := range found {
		if !slices.Contains(names, violation.Kind) {
			names = append(names, violation.Kind)
		}
	}
	slices.Sort(names)
	return strings.Join(names, "; ")
}

func TestRegisters(t *testing.T) {
	for name, test := range map[string]struct {
		history []Op
		found   string
	}{
		"good": {[]Op{
			op("a", Write, 0, 1, 1), op("b", Read, 2, 3, 0, 1), op("b", Swap, 4, 5, 2, 1), cas("a", 6, 7, 2, 3), op("b", Read, 8, 9, 0, 3),
		}, ""},
		"nothing was written":                   {[]Op{op("a", Read, 0, 1, 0, 0)}, ""},
		"either order of what is concurrent":    {[]Op{op("a", Write, 0, 9, 1), op("b", Read, 1, 2, 0, 1), op("b", Read, 3, 4, 0, 1)}, ""},
		"there and back while it is concurrent": {[]Op{op("a", Write, 0, 9, 1), op("b", Read, 1, 2, 0, 1), op("b", Read, 3, 4, 0, 0)}, "not linearizable"},
		"stale read":                            {[]Op{op("a", Write, 0, 1, 1), op("b", Read, 2, 3, 0, 0)}, "not linearizable"},
		"lost write":                            {[]Op{op("a", Write, 0, 1, 1), op("a", Write, 2, 3, 2), op("b", Read, 4, 5, 0, 1)}, "not linearizable"},
		"compare and set of what was not there": {[]Op{op("a", Write, 0, 1, 1), cas("b", 2, 3, 0, 2)}, "not linearizable"},
		"two of the same compare and set":       {[]Op{cas("a", 0, 9, 0, 1), cas("b", 0, 9, 0, 2)}, "not linearizable"},
		"swap of what was not there":            {[]Op{op("a", Write, 0, 1, 1), op("b", Swap, 2, 3, 2, 0)}, "not linearizable"},
		"the answer of another":                 {[]Op{op("a", Write, 0, 1, 1), op("b", Read, 2, 3, 0, 77)}, "never written"},
		"refused and not there":                 {[]Op{with(Refused, op("a", Write, 0, 1, 1)), op("b", Read, 2, 3, 0, 0)}, ""},
		"refused and there":                     {[]Op{with(Refused, op("a", Write, 0, 1, 1)), op("b", Read, 2, 3, 0, 1)}, "refused and carried out"},
		"unknown and not there":                 {[]Op{with(Unknown, op("a", Write, 0, 1, 1)), op("b", Read, 2, 3, 0, 0)}, ""},
		"unknown and there, long after it":      {[]Op{with(Unknown, op("a", Write, 0, 1, 1)), op("b", Read, 2, 3, 0, 0), op("b", Read, 4, 5, 0, 1)}, ""},
		"unknown, and there twice": {[]Op{
			with(Unknown, op("a", Write, 0, 1, 1)), op("b", Read, 2, 3, 0, 1), op("b", Write, 4, 5, 2), op("b", Read, 6, 7, 0, 1),
		}, "not linearizable"},
		"unknown, and there before it": {[]Op{op("b", Read, 0, 1, 0, 1), with(Unknown, op("a", Write, 2, 3, 1))}, "not linearizable"},
	} {
		if found := Registers(test.history); kinds(found) != test.found {
			t.Errorf("%s: %v", name, found)
		}
	}
}

func TestLists(t *testing.T) {
	for name, test := range map[string]struct {
		history []Op
		found   string
	}{
		"good": {[]Op{
			op("a", Append, 0, 1, 1), op("b", Append, 0, 1, 2), op("a", Read, 2, 3, 0, 2, 1), op("c", Stale, 2, 3, 0, 2),
			op("c", Stale, 4, 5, 0, 2, 1), op(Final, Read, 9, 9, 0, 2, 1),
		}, ""},
		"twice":                  {[]Op{op("a", Append, 0, 1, 1), op(Final, Read, 9, 9, 0, 1, 1)}, "carried out twice; not linearizable"},
		"unknown, and twice":     {[]Op{with(Unknown, op("a", Append, 0, 1, 1)), op(Final, Read, 9, 9, 0, 1, 1)}, "carried out twice; not linearizable"},
		"lost":                   {[]Op{op("a", Append, 0, 1, 1), op(Final, Read, 9, 9, 0)}, "acknowledged and lost; not linearizable"},
		"refused and there":      {[]Op{with(Refused, op("a", Append, 0, 1, 1)), op(Final, Read, 9, 9, 0, 1)}, "refused and carried out"},
		"unknown, there or not":  {[]Op{with(Unknown, op("a", Append, 0, 1, 1)), with(Unknown, op("b", Append, 0, 1, 2)), op(Final, Read, 9, 9, 0, 2)}, ""},
		"against the order":      {[]Op{op("a", Append, 0, 1, 1), op("a", Append, 2, 3, 2), op(Final, Read, 9, 9, 0, 2, 1)}, "not linearizable"},
		"the answer of another":  {[]Op{op("a", Append, 0, 1, 1), op("b", Read, 2, 3, 0, 7)}, "never written"},
		"a session may be stale": {[]Op{op("a", Append, 0, 1, 1), op("b", Stale, 2, 3, 0), op(Final, Read, 9, 9, 0, 1)}, ""},
		"a session goes back": {[]Op{
			op("a", Append, 0, 1, 1), op("b", Stale, 2, 3, 0, 1), op("b", Stale, 4, 5, 0), op(Final, Read, 9, 9, 0, 1),
		}, "session goes back"},
		"a session misses its own":      {[]Op{op("a", Append, 0, 1, 1), op("a", Stale, 2, 3, 0), op(Final, Read, 9, 9, 0, 1)}, "own write not seen"},
		"a session sees what goes away": {[]Op{with(Unknown, op("a", Append, 0, 1, 1)), op("b", Stale, 2, 3, 0, 1), op(Final, Read, 9, 9, 0)}, "not linearizable; seen and lost"},
	} {
		if found := Lists(test.history); kinds(found) != test.found {
			t.Errorf("%s: %v", name, found)
		}
	}
}

// Many clients at a time, all of what they do unknown: still decided at once.
func TestUnknownOutcomesAreCheap(t *testing.T) {
	var history []Op
	var there []int64
	for i := range int64(60) {
		history = append(history, with(Unknown, op(string(rune('a'+i%20)), Append, int(i), int(i)+1, i+1)))
		if i%3 == 0 {
			there = append(there, i+1)
		}
	}
	slices.Reverse(there)
	history = append(history, op(Final, Read, 99, 99, 0, there...))
	if found := Lists(history); len(found) != 0 {
		t.Error(found)
	}
}
