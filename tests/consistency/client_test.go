package main

import (
	"context"
	"errors"
	"testing"

	"go.mongodb.org/mongo-driver/v2/event"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"mongomux/consistency/check"
)

// What became of an operation follows from all of its attempts, whatever the last one says.
func TestOutcome(t *testing.T) {
	labels := func(labels ...string) error { return mongo.CommandError{Code: 6, Labels: labels} }
	overloaded := labels("SystemOverloadedError", "RetryableError")
	nothing := labels("RetryableWriteError", "NoWritesPerformed")
	doubtful := labels("RetryableWriteError")
	for name, test := range map[string]struct {
		attempts []error // nil: its answer never came
		err      error
		outcome  check.Outcome
	}{
		"answered":                     {[]error{doubtful}, nil, check.Done},
		"never sent":                   {nil, errors.New("no server"), check.Refused},
		"refused":                      {[]error{overloaded}, overloaded, check.Refused},
		"nothing written":              {[]error{nothing}, nothing, check.Refused},
		"refused again and again":      {[]error{overloaded, nothing, overloaded}, overloaded, check.Refused},
		"in doubt":                     {[]error{doubtful}, doubtful, check.Unknown},
		"in doubt, then refused":       {[]error{doubtful, overloaded}, overloaded, check.Unknown},
		"refused, then in doubt":       {[]error{overloaded, doubtful}, doubtful, check.Unknown},
		"not answered":                 {[]error{nil}, errors.New("timeout"), check.Unknown},
		"one label of two":             {[]error{labels("SystemOverloadedError")}, labels("SystemOverloadedError"), check.Unknown},
		"a reply that says it in part": {[]error{labels()}, labels(), check.Unknown},
	} {
		ctx, attempts := watched(context.Background())
		for _, failure := range test.attempts {
			listening.Started(ctx, &event.CommandStartedEvent{})
			if failure != nil {
				listening.Failed(ctx, &event.CommandFailedEvent{Failure: failure})
			}
		}
		if outcome, why := attempts.outcome(test.err); outcome != test.outcome {
			t.Errorf("%s: %s, %s", name, outcome, why)
		}
	}
}
