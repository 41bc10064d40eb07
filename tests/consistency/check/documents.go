package check

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// longest is the time for the histories of all keys. They are short, so this is far off.
const longest = 60 * time.Second

// Registers checks single values: nobody sees what was not written or was refused, and every key is linearizable.
func Registers(history []Op) []Violation { return documents(history, register) }

// Lists checks lists that are appended to: as registers, and nothing is lost, nothing there twice, and sessions see what
// they have seen and done.
func Lists(history []Op) []Violation {
	found := documents(history, list)
	for key, ops := range byKey(history) {
		found = append(found, twice(key, ops)...)
		found = append(found, lost(key, ops)...)
	}
	return append(found, sessions(history)...)
}

func documents(history []Op, model func([]Op) porcupine.Model) []Violation {
	var found []Violation
	for key, ops := range byKey(history) {
		wrong := unfounded(key, ops)
		found = append(found, wrong...)
		if len(wrong) == 0 {
			found = append(found, linearizable(key, ops, model)...)
		}
	}
	return found
}

func byKey(history []Op) map[string][]Op {
	keys := map[string][]Op{}
	for _, op := range history {
		keys[op.Key] = append(keys[op.Key], op)
	}
	return keys
}

// unfounded finds values that nobody can have seen: written by nobody, or by somebody who was refused.
func unfounded(key string, ops []Op) []Violation {
	writers := map[int64]Op{0: {}}
	for _, op := range ops {
		if op.writes() {
			writers[op.Value] = op
		}
	}
	var found []Violation
	told := map[int64]bool{}
	for _, op := range ops {
		for _, value := range op.Seen {
			writer, known := writers[value]
			switch {
			case told[value]:
				continue
			case !known:
				found = append(found, Violation{"never written", key, fmt.Sprintf("%d, seen by %s", value, op)})
			case writer.Outcome == Refused:
				text := fmt.Sprintf("%s; it was carried out: %s sees it", writer, op)
				found = append(found, Violation{"refused and carried out", key, text})
			default:
				continue
			}
			told[value] = true
		}
	}
	return found
}

func twice(key string, ops []Op) []Violation {
	for _, op := range ops {
		seen := map[int64]bool{}
		for _, value := range op.Seen {
			if seen[value] {
				return []Violation{{"carried out twice", key, fmt.Sprintf("%d stands twice in %v, seen by %s", value, op.Seen, op)}}
			}
			seen[value] = true
		}
	}
	return nil
}

// lost finds appends that were acknowledged and are not there at the end.
func lost(key string, ops []Op) []Violation {
	last := slices.IndexFunc(ops, func(op Op) bool { return op.Client == Final })
	if last < 0 {
		return nil
	}
	var found []Violation
	for _, op := range ops {
		if op.Kind == Append && op.Outcome == Done && !slices.Contains(ops[last].Seen, op.Value) {
			found = append(found, Violation{"acknowledged and lost", key, fmt.Sprintf("%s; at the end there is %v", op, ops[last].Seen)})
		}
	}
	return found
}

// sessions checks what causal consistency promises to each client about its own reads and writes, in their order.
func sessions(history []Op) []Violation {
	type place struct{ client, key string }
	type memory struct {
		seen []int64
		own  []Op
	}
	finals := map[string][]int64{}
	for _, op := range history {
		if op.Client == Final {
			finals[op.Key] = op.Seen
		}
	}
	ordered := slices.Clone(history)
	sort.SliceStable(ordered, func(i, j int) bool { return ordered[i].Call < ordered[j].Call })
	known := map[place]*memory{}
	var found []Violation
	for _, op := range ordered {
		at := place{op.Client, op.Key}
		if known[at] == nil {
			known[at] = &memory{}
		}
		mine := known[at]
		switch {
		case op.Outcome != Done:
		case op.Kind == Append:
			mine.own = append(mine.own, op)
		case op.Kind == Stale:
			if !isPrefix(mine.seen, op.Seen) {
				text := fmt.Sprintf("%s sees %v after %v", op, op.Seen, mine.seen)
				found = append(found, Violation{"session goes back", op.Key, text})
			}
			for _, own := range mine.own {
				if !slices.Contains(op.Seen, own.Value) {
					text := fmt.Sprintf("%s does not see %s, only %v", op, own, op.Seen)
					found = append(found, Violation{"own write not seen", op.Key, text})
				}
			}
			if final, ended := finals[op.Key]; ended && !isPrefix(op.Seen, final) {
				text := fmt.Sprintf("%s sees %v, and at the end there is %v", op, op.Seen, final)
				found = append(found, Violation{"seen and lost", op.Key, text})
			}
			mine.seen = op.Seen
		}
	}
	return found
}

func isPrefix(start, whole []int64) bool {
	return len(start) <= len(whole) && slices.Equal(start, whole[:len(start)])
}

// linearizable asks whether there is one order of all operations, each between its call and its return, that explains
// every answer. A write of unknown outcome that nobody has ever seen explains nothing and is left out; one that was seen
// has happened, at some time after its call.
func linearizable(key string, ops []Op, model func([]Op) porcupine.Model) []Violation {
	observed := map[int64]bool{}
	for _, op := range ops {
		for _, value := range op.Seen {
			observed[value] = true
		}
	}
	var entries []porcupine.Operation
	clients := map[string]int{}
	for _, op := range ops {
		if op.Kind == Stale || op.Outcome == Refused || op.Outcome == Unknown && !(op.writes() && observed[op.Value]) {
			continue
		}
		if op.Outcome == Unknown {
			op.Return, op.Seen = Forever, nil
		}
		if _, known := clients[op.Client]; !known {
			clients[op.Client] = len(clients)
		}
		entries = append(entries, porcupine.Operation{
			ClientId: clients[op.Client], Input: op, Output: op.Seen, Call: int64(op.Call), Return: int64(op.Return),
		})
	}
	switch result, info := porcupine.CheckOperationsVerbose(model(ops), entries, longest); result {
	case porcupine.Illegal:
		return []Violation{{"not linearizable", key, explain(entries, info)}}
	case porcupine.Unknown:
		return []Violation{{"undecided", key, fmt.Sprintf("%d operations were not put in order within %s", len(entries), longest)}}
	}
	return nil
}

// explain tells how far the longest order comes, and what cannot follow.
func explain(entries []porcupine.Operation, info porcupine.LinearizationInfo) string {
	var best []int
	for _, partition := range info.PartialLinearizations() {
		for _, order := range partition {
			if len(order) > len(best) {
				best = order
			}
		}
	}
	var state any = ""
	for _, index := range best {
		if op := entries[index].Input.(Op); op.writes() {
			state = op
		}
	}
	placed := map[int]bool{}
	for _, index := range best {
		placed[index] = true
	}
	var rest []string
	for index, entry := range entries {
		if op := entry.Input.(Op); !placed[index] && op.Outcome == Done && len(rest) < 3 {
			rest = append(rest, fmt.Sprintf("%s, ended at %s, saw %v", op, at(op.Return), op.Seen))
		}
	}
	return fmt.Sprintf("%d of %d operations can be put in order, the last write being [%v]; none of these can follow: %s",
		len(best), len(entries), state, strings.Join(rest, "; "))
}

// register is the model of a single value, which is the state.
func register([]Op) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return int64(0) },
		Step: func(state, input, output any) (bool, any) {
			value, op, seen := state.(int64), input.(Op), output.([]int64)
			saw := len(seen) == 1 && seen[0] == value || op.Outcome == Unknown
			switch op.Kind {
			case Read:
				return saw, value
			case Swap:
				return saw, op.Value
			case Cas:
				return value == op.Old, op.Value
			default:
				return true, op.Value
			}
		},
	}
}

// list is the model of one that only ever grows: the last read, or else the longest one, is the order of all appends, and
// the state is how many of them have been done. That it is known is what makes many unknown outcomes cheap.
func list(ops []Op) porcupine.Model {
	var whole []int64
	for _, op := range ops {
		if op.Client == Final {
			whole = op.Seen
			break
		}
		if len(op.Seen) > len(whole) {
			whole = op.Seen
		}
	}
	return porcupine.Model{
		Init: func() any { return 0 },
		Step: func(state, input, output any) (bool, any) {
			count, op := state.(int), input.(Op)
			if op.Kind == Append {
				return count < len(whole) && whole[count] == op.Value, count + 1
			}
			seen := output.([]int64)
			return len(seen) == count && isPrefix(seen, whole), count
		},
	}
}
