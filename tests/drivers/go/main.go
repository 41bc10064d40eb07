// The driver scenario for the Go driver: each check prints one line, `ok NAME`, `FAIL NAME: reason` or `n/a NAME: why`.
//
//	scenario URI [--view sharded|replicaset|loadbalanced] [--compressor zlib|snappy|zstd]
//
// The view is what the driver's own monitoring must say about the address. The README of the drivers explains the rest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"runtime/debug"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// Of one check. `WithTransaction` alone may start over for 120 s.
const longest = 30 * time.Second

// What the driver must make of the address: topology type and server type.
var views = map[string][2]string{
	"sharded":      {"Sharded", "Mongos"},
	"replicaset":   {"ReplicaSetWithPrimary", "RSPrimary"},
	"loadbalanced": {"LoadBalanced", "LoadBalancer"},
}

type scenario struct {
	uri        string
	wanted     string
	compressor string
	view       *view
	client     *mongo.Client
	db         *mongo.Database
}

// A check panics with what is wrong, or with a `lacking` where driver or server has no such thing.
type lacking string

type check struct {
	name string
	run  func(ctx context.Context, s *scenario)
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "visit" {
		visit()
		return
	}
	wanted := flag.String("view", "sharded", "what the driver must see")
	compressor := flag.String("compressor", "", "what the connections must negotiate")
	if len(os.Args) < 2 || flag.CommandLine.Parse(os.Args[2:]) != nil || views[*wanted][0] == "" {
		fmt.Fprintln(os.Stderr, "usage: scenario URI [--view VIEW] [--compressor NAME]")
		os.Exit(2)
	}
	s := &scenario{uri: os.Args[1], wanted: *wanted, compressor: *compressor}
	s.client, s.view = s.connect(nil)
	s.db = s.client.Database("drivers_go_" + *wanted + *compressor)

	code := 0
	for _, c := range checks {
		line, good := verdict(c, s)
		fmt.Println(line)
		if !good {
			code = 1
			if c.name == "connect" {
				break
			}
		}
	}
	fmt.Println("finished")
	os.Exit(code)
}

// verdict runs one check; a check that does not heed its deadline in time is left behind.
func verdict(c check, s *scenario) (line string, good bool) {
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	defer cancel()
	caught := make(chan any, 1)
	go func() {
		defer func() {
			what := recover()
			if _, isLacking := what.(lacking); what != nil && !isLacking {
				fmt.Fprintf(os.Stderr, "%s: %v\n%s\n", c.name, what, debug.Stack())
			}
			caught <- what
		}()
		c.run(ctx, s)
	}()
	var what any
	select {
	case what = <-caught:
	case <-time.After(longest + 2*time.Second):
		what = fmt.Sprintf("not done after %v", longest)
	}
	if what == nil {
		return "ok " + c.name, true
	}
	reason := strings.Join(strings.Fields(fmt.Sprint(what)), " ")
	if _, isLacking := what.(lacking); isLacking {
		return fmt.Sprintf("n/a %s: %s", c.name, reason), true
	}
	return fmt.Sprintf("FAIL %s: %.400s", c.name, reason), false
}

// connect makes a client that is watched; `adjust` may change its options.
func (s *scenario) connect(adjust func(*options.ClientOptions)) (*mongo.Client, *view) {
	v := newView()
	o := options.Client().ApplyURI(s.uri).SetServerSelectionTimeout(10 * time.Second)
	o.SetMonitor(v.commands()).SetPoolMonitor(v.pool()).SetServerMonitor(v.servers())
	if s.compressor != "" {
		o.SetCompressors([]string{s.compressor})
	}
	if adjust != nil {
		adjust(o)
	}
	return must(mongo.Connect(o)), v
}

// collection makes an empty collection that exists, or one with these documents.
func (s *scenario) collection(ctx context.Context, name string, documents ...any) *mongo.Collection {
	c := s.db.Collection(name)
	try(c.Drop(ctx))
	try(s.db.CreateCollection(ctx, name))
	if len(documents) > 0 {
		must(c.InsertMany(ctx, documents))
	}
	return c
}

// admin runs a command on the database admin.
func (s *scenario) admin(ctx context.Context, command bson.D) bson.M {
	return run(ctx, s.client.Database("admin"), command)
}

// gone is true of a cursor that no longer exists on the server; one that does would answer 50738 to this session.
func (s *scenario) gone(ctx context.Context, c *mongo.Collection, cursor int64) {
	command := bson.D{{Key: "getMore", Value: cursor}, {Key: "collection", Value: c.Name()}}
	// A getMore that was running when the cursor was killed still holds it for a moment.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		code := codeOf(s.db.RunCommand(ctx, command).Err())
		if code == 43 {
			return
		}
		if code != 143 || time.Now().After(deadline) {
			panic(fmt.Sprintf("the cursor was not killed: code %d, not 43", code))
		}
	}
}

func run(ctx context.Context, db *mongo.Database, command bson.D) bson.M {
	var reply bson.M
	try(db.RunCommand(ctx, command).Decode(&reply))
	return reply
}

func try(err error) {
	if err != nil {
		panic(err)
	}
}

func must[T any](value T, err error) T {
	try(err)
	return value
}

func same(found, wanted any, what string) {
	if !reflect.DeepEqual(found, wanted) {
		panic(fmt.Sprintf("%s is %.200s (%T), not %.200s (%T)", what, fmt.Sprint(found), found, fmt.Sprint(wanted), wanted))
	}
}

func holds(good bool, what string) {
	if !good {
		panic(what)
	}
}

// fails checks that the error is one of the server with this code.
func fails(code int, err error) {
	if err == nil {
		panic(fmt.Sprintf("no error, code %d was due", code))
	}
	same(codeOf(err), code, fmt.Sprintf("code of %.150s", err))
}

// codeOf is 0 of a success, and -1 of what carries no code.
func codeOf(err error) int {
	if err == nil {
		return 0
	}
	var server mongo.ServerError
	if errors.As(err, &server) && len(server.ErrorCodes()) > 0 {
		return server.ErrorCodes()[0]
	}
	return -1
}

// numbered makes documents whose _id counts from 0.
func numbered(count int, more func(i int) bson.D) []any {
	documents := make([]any, count)
	for i := range documents {
		d := bson.D{{Key: "_id", Value: i}}
		if more != nil {
			d = append(d, more(i)...)
		}
		documents[i] = d
	}
	return documents
}

// ids reads the cursor to its end.
func ids(ctx context.Context, cursor *mongo.Cursor, err error) []int {
	try(err)
	found := []int{}
	for cursor.Next(ctx) {
		found = append(found, id(cursor.Current))
	}
	try(cursor.Err())
	try(cursor.Close(ctx))
	return found
}

func id(document bson.Raw) int { return int(document.Lookup("_id").AsInt64()) }

// upTo is 0, 1, ... to below the end.
func upTo(end int) []int { return span(0, end) }

func span(from, to int) []int {
	numbers := make([]int, 0, to-from)
	for i := from; i < to; i++ {
		numbers = append(numbers, i)
	}
	return numbers
}

func e(key string, value any) bson.E { return bson.E{Key: key, Value: value} }

func count(ctx context.Context, c *mongo.Collection, filter bson.D) int {
	return int(must(c.CountDocuments(ctx, filter)))
}
