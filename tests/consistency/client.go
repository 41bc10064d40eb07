package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/event"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"

	"mongomux/consistency/check"
)

// As people run it, with nothing ever sent again, and with a deadline, where the driver may send again as often as it
// likes. Workers take turns with them.
var drivers = []func(*options.ClientOptions){
	func(*options.ClientOptions) {},
	func(o *options.ClientOptions) { o.SetRetryWrites(false).SetRetryReads(false) },
	func(o *options.ClientOptions) { o.SetTimeout(3 * time.Second) },
}

func connect(uri string, adjust func(*options.ClientOptions)) (*mongo.Client, error) {
	o := options.Client().ApplyURI(uri).SetServerSelectionTimeout(10 * time.Second).SetConnectTimeout(3 * time.Second).
		SetWriteConcern(writeconcern.Majority()).SetReadConcern(readconcern.Majority()).SetMonitor(listening)
	adjust(o)
	return mongo.Connect(o)
}

// attempts are those of one operation: the driver may send it again, and tells in the end of one of them only.
type attempts struct {
	mutex          sync.Mutex
	begun, refused int
	lastNotRefused error
}

type attemptsKey struct{}

func watched(ctx context.Context) (context.Context, *attempts) {
	a := &attempts{}
	return context.WithValue(ctx, attemptsKey{}, a), a
}

var listening = &event.CommandMonitor{
	Started: func(ctx context.Context, _ *event.CommandStartedEvent) {
		if a, ok := ctx.Value(attemptsKey{}).(*attempts); ok {
			a.mutex.Lock()
			defer a.mutex.Unlock()
			a.begun++
		}
	},
	Failed: func(ctx context.Context, e *event.CommandFailedEvent) {
		if a, ok := ctx.Value(attemptsKey{}).(*attempts); ok {
			a.mutex.Lock()
			defer a.mutex.Unlock()
			if notExecuted(e.Failure) {
				a.refused++
			} else {
				a.lastNotRefused = e.Failure
			}
		}
	},
}

type labelled interface{ HasErrorLabel(string) bool }

func hasLabel(err error, label string) bool {
	var l labelled
	return errors.As(err, &l) && l.HasErrorLabel(label)
}

// notExecuted: the labels say that any command may be sent again, or that nothing was written.
func notExecuted(err error) bool {
	return hasLabel(err, "SystemOverloadedError") && hasLabel(err, "RetryableError") || hasLabel(err, "NoWritesPerformed")
}

// outcome of a write with this error: it is certain that it was not done only where each attempt was refused.
func (a *attempts) outcome(err error) (check.Outcome, string) {
	if err == nil {
		return check.Done, ""
	}
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if a.refused == a.begun {
		return check.Refused, err.Error()
	}
	if a.lastNotRefused != nil {
		err = a.lastNotRefused
	}
	return check.Unknown, err.Error()
}
