package check

import (
	"strings"
	"testing"
	"time"
)

// txn is a committed transaction of a second; what it does is read from the words: "x+1" appends 1 to x, and "x=1,2" is
// what it read there.
func txn(client string, from int, steps ...string) Txn {
	t := Txn{Client: client, Call: time.Duration(from) * time.Second, Return: time.Duration(from+1) * time.Second, Outcome: Done}
	for _, words := range steps {
		step := Step{Key: words[:1]}
		var values []int64
		for _, digits := range strings.FieldsFunc(words[2:], func(r rune) bool { return r == ',' }) {
			values = append(values, int64(digits[0]-'0'))
		}
		if words[1] == '+' {
			step.Append = values[0]
		} else {
			step.Seen = values
		}
		t.Steps = append(t.Steps, step)
	}
	return t
}

func ended(outcome Outcome, t Txn) Txn {
	t.Outcome = outcome
	return t
}

// Of clients of their own, all at once: neither sessions nor time tell an order.
func concurrent(steps ...[]string) []Txn {
	var history []Txn
	for i, of := range steps {
		history = append(history, txn(string(rune('a'+i)), 0, of...))
	}
	return history
}

func TestTransactions(t *testing.T) {
	type finals = map[string][]int64
	for name, test := range map[string]struct {
		history []Txn
		finals  finals
		found   string
	}{
		"good": {[]Txn{
			txn("a", 0, "x=", "x+1", "x=1", "y+2"), txn("b", 2, "x=1", "y=2", "y+3", "y=2,3"), txn("a", 4, "x=1", "y=2,3", "x+4"),
			ended(Refused, txn("b", 4, "x+5")), ended(Unknown, txn("c", 4, "x+6", "y+7")), ended(Unknown, txn("d", 4, "x+8")),
		}, finals{"x": {1, 4, 6}, "y": {2, 3, 7}}, ""},
		"write skew is no fault": {concurrent([]string{"x=", "y+1"}, []string{"y=", "x+2"}), finals{"x": {2}, "y": {1}}, ""},
		"long write skew is no fault": {concurrent([]string{"x=", "y+1"}, []string{"y=", "z+2"}, []string{"z=", "x+3"}),
			finals{"x": {3}, "y": {1}, "z": {2}}, ""},

		"lost":                   {[]Txn{txn("a", 0, "x+1")}, finals{"x": {}}, "acknowledged and lost"},
		"twice":                  {[]Txn{txn("a", 0, "x+1")}, finals{"x": {1, 1}}, "carried out twice"},
		"twice in a read":        {[]Txn{txn("a", 0, "x+1"), txn("b", 2, "x=1,1")}, finals{"x": {1}}, "carried out twice; seen and lost"},
		"of another list":        {[]Txn{txn("a", 0, "x+1"), txn("b", 2, "y=1")}, finals{"x": {1}}, "never written; seen and lost"},
		"aborted and there":      {[]Txn{ended(Refused, txn("a", 0, "x+1"))}, finals{"x": {1}}, "refused and carried out"},
		"in part":                {[]Txn{ended(Unknown, txn("a", 0, "x+1", "y+2"))}, finals{"x": {1}}, "done in part"},
		"aborted read":           {[]Txn{ended(Refused, txn("a", 0, "x+1")), txn("b", 0, "x=1")}, finals{}, "G1a, aborted read; seen and lost"},
		"intermediate read":      {[]Txn{txn("a", 0, "x+1", "x+2"), txn("b", 0, "x=1")}, finals{"x": {1, 2}}, "G1b, intermediate read"},
		"seen and gone":          {[]Txn{ended(Unknown, txn("a", 0, "x+1")), txn("b", 0, "x=1")}, finals{}, "seen and lost"},
		"reads of two orders":    {concurrent([]string{"x+1"}, []string{"x+2"}, []string{"x=1"}, []string{"x=2"}), finals{"x": {1, 2}}, "seen and lost"},
		"reads twice, otherwise": {concurrent([]string{"x+1"}, []string{"x=", "x=1"}), finals{"x": {1}}, "contradicts itself"},
		"does not see its own":   {concurrent([]string{"x+1", "x="}), finals{"x": {1}}, "own write not seen"},

		"dirty write":    {concurrent([]string{"x+1", "y+2"}, []string{"x+3", "y+4"}), finals{"x": {1, 3}, "y": {4, 2}}, "G0, dirty write"},
		"interleaved":    {concurrent([]string{"x+1", "x+2"}, []string{"x+3"}), finals{"x": {1, 3, 2}}, "G0, dirty write"},
		"each other's":   {concurrent([]string{"x+1", "y=2"}, []string{"y+2", "x=1"}), finals{"x": {1}, "y": {2}}, "G1c, circular information flow"},
		"fractured read": {concurrent([]string{"x+1", "y+2"}, []string{"x=1", "y="}), finals{"x": {1}, "y": {2}}, "G-single, read skew"},
		"lost update":    {concurrent([]string{"x=", "x+1"}, []string{"x=", "x+2"}), finals{"x": {1, 2}}, "G-single, read skew"},
		"long fork":      {concurrent([]string{"x+1"}, []string{"y+2"}, []string{"x=1", "y="}, []string{"x=", "y=2"}), finals{"x": {1}, "y": {2}}, "G-nonadjacent"},

		"older than its session": {[]Txn{txn("a", 0, "x+1"), txn("a", 2, "x=")}, finals{"x": {1}},
			"G-single, read skew against the order of sessions or of time"},
		"read-only and old, of another session": {[]Txn{txn("a", 0, "x+1"), txn("b", 2, "x=")}, finals{"x": {1}}, ""},
		"written in ignorance": {[]Txn{txn("a", 0, "x+1"), txn("b", 2, "x=", "y+2")}, finals{"x": {1}, "y": {2}},
			"G-single, read skew against the order of sessions or of time"},
		"written before what had ended": {[]Txn{txn("a", 0, "x+1"), txn("b", 2, "x+2")}, finals{"x": {2, 1}},
			"G0, dirty write against the order of sessions or of time"},
		"unknown, and late": {[]Txn{ended(Unknown, txn("a", 0, "x+1")), txn("b", 2, "x=", "x+2"), txn("b", 9, "x=2,1")}, finals{"x": {2, 1}}, ""},
		"unknown, and old": {[]Txn{txn("a", 0, "x+1"), ended(Unknown, txn("b", 2, "x=", "y+2"))}, finals{"x": {1}, "y": {2}},
			"G-single, read skew against the order of sessions or of time"},
	} {
		if found := Transactions(test.history, test.finals); kinds(found) != test.found {
			t.Errorf("%s: %v", name, found)
		}
	}
}
