// Package check decides whether what clients saw of a database can have come from one that keeps its promises. It knows
// histories only: no socket, no clock, no server.
package check

import (
	"fmt"
	"time"
)

// Outcome is what a client knows of its operation.
type Outcome string

const (
	// Done: the answer said so.
	Done Outcome = "done"
	// Refused: whoever refused it said that it was not carried out, so nobody may ever see its effect.
	Refused Outcome = "refused"
	// Unknown: no answer, or one that leaves it open. It may have happened, may yet happen, once at most.
	Unknown Outcome = "unknown"
)

// Forever is when an operation of unknown outcome ends: it may take effect at any later time.
const Forever = time.Duration(1 << 62)

// Kinds of operations on one document.
const (
	Read   = "read"
	Write  = "write"
	Swap   = "swap"   // writes Value, tells what was there in Seen
	Cas    = "cas"    // writes Value where Old is
	Append = "append" // puts Value at the end of the list
	// Stale is a read that may be older than the last write, but not older than what its session has seen or done.
	Stale = "stale"
)

// Final is the client of the reads after everything has ended: what is left.
const Final = "final"

// Op is one operation on the document Key. Times count from the beginning of the history. No value is written twice.
type Op struct {
	Client  string
	Kind    string
	Key     string
	Value   int64   `json:",omitempty"`
	Old     int64   `json:",omitempty"`
	Seen    []int64 `json:",omitempty"` // the list, or the one value of a register
	Call    time.Duration
	Return  time.Duration
	Outcome Outcome
	Why     string `json:",omitempty"` // the error
}

func (op Op) writes() bool { return op.Kind != Read && op.Kind != Stale }

func (op Op) String() string {
	text := fmt.Sprintf("%s: %s of %s at %s", op.Client, op.Kind, op.Key, at(op.Call))
	switch op.Kind {
	case Read, Stale:
		return text
	case Cas:
		text = fmt.Sprintf("%s: %s of %s, %d for %d, at %s", op.Client, op.Kind, op.Key, op.Value, op.Old, at(op.Call))
	default:
		text = fmt.Sprintf("%s: %s of %s, %d, at %s", op.Client, op.Kind, op.Key, op.Value, at(op.Call))
	}
	if op.Why != "" {
		text += fmt.Sprintf(" (%s: %s)", op.Outcome, op.Why)
	}
	return text
}

// Violation is a promise that was broken, in words.
type Violation struct {
	Kind string
	Key  string
	Text string
}

func (v Violation) String() string { return fmt.Sprintf("%s, key %s: %s", v.Kind, v.Key, v.Text) }

func at(time time.Duration) string { return fmt.Sprintf("%.3f s", time.Seconds()) }
