package stage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// Members of the set.
const Members = 3

// setName is that of the replica set.
const setName = "chaos"

// member is a server and what stands before it. The set knows its members by their relays, so what members say to each
// other can be cut as well.
type Member struct {
	process
	Port  string
	Relay *Relay
	admin *mongo.Client // past the relay
}

// Set is a replica set.
type Set struct{ Members [Members]*Member }

// StartSet starts the servers and waits for their primary.
func StartSet(ctx context.Context, mongod, directory string) (*Set, error) {
	ports, err := freePorts(Members)
	if err != nil {
		return nil, err
	}
	set := &Set{}
	var members bson.A
	for i := range set.Members {
		port := strconv.Itoa(ports[i])
		data := filepath.Join(directory, "db-"+port)
		if err := os.Mkdir(data, 0o755); err != nil {
			return set, err
		}
		relay, err := NewRelay("127.0.0.1:" + port)
		if err != nil {
			return set, err
		}
		one := options.Client().ApplyURI("mongodb://127.0.0.1:" + port + "/?directConnection=true").
			SetServerSelectionTimeout(500 * time.Millisecond).SetTimeout(2 * time.Second).SetHeartbeatInterval(500 * time.Millisecond)
		admin, err := mongo.Connect(one)
		if err != nil {
			return set, err
		}
		set.Members[i] = &Member{Port: port, Relay: relay, admin: admin, process: process{
			path: mongod,
			args: []string{"--replSet", setName, "--bind_ip", "127.0.0.1", "--port", port, "--dbpath", data, "--oplogSize", "512",
				"--wiredTigerCacheSizeGB", "0.25", "--wiredTigerEngineConfigString", "log=(file_max=16MB,prealloc=false)", "--setParameter", "diagnosticDataCollectionEnabled=false",
				// A transaction whose client is gone must not be in the way of others for longer than a trouble lasts.
				"--setParameter", "transactionLifetimeLimitSeconds=15"},
			log: filepath.Join(directory, "mongod-"+port+".log"),
		}}
		if err := set.Members[i].start(); err != nil {
			return set, err
		}
		members = append(members, bson.M{"_id": i, "host": relay.Address()})
	}
	// Elections are not what is tested: the sooner they are over, the more of them there are.
	settings := bson.M{"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500}
	initiate := bson.D{{Key: "replSetInitiate", Value: bson.M{"_id": setName, "members": members, "settings": settings}}}
	if err := eventually(ctx, 30*time.Second, func() error { return set.Members[0].run(ctx, initiate) }); err != nil {
		return set, fmt.Errorf("the set cannot be initiated: %w", err)
	}
	_, err = set.Primary(ctx)
	return set, err
}

func (m *Member) run(ctx context.Context, command bson.D) error {
	return m.admin.Database("admin").RunCommand(ctx, command).Err()
}

// URI for clients that go to the members themselves.
func (s *Set) URI() string {
	var hosts []string
	for _, m := range s.Members {
		hosts = append(hosts, m.Relay.Address())
	}
	return "mongodb://" + strings.Join(hosts, ",") + "/?replicaSet=" + setName
}

// Primary waits for one that the others follow, and tells which it is.
func (s *Set) Primary(ctx context.Context) (int, error) {
	found := 0
	err := eventually(ctx, 60*time.Second, func() error {
		for i := range s.Members {
			if s.isPrimary(ctx, i) {
				found = i
				return nil
			}
		}
		return errors.New("there is no primary")
	})
	return found, err
}

func (s *Set) isPrimary(ctx context.Context, i int) bool {
	var hello struct{ IsWritablePrimary bool }
	// A paused one does not answer.
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	err := s.Members[i].admin.Database("admin").RunCommand(ctx, bson.D{{Key: "hello", Value: 1}}).Decode(&hello)
	return err == nil && hello.IsWritablePrimary
}

// Upheavals is how often members took part in either, by their logs: how hard it was for them.
func (s *Set) Upheavals() (elections, rollbacks int) {
	for _, m := range s.Members {
		content, err := os.ReadFile(m.log)
		if err != nil {
			continue
		}
		elections += bytes.Count(content, []byte(`"msg":"Starting an election`))
		rollbacks += bytes.Count(content, []byte(`"msg":"Rollback complete"`))
	}
	return elections, rollbacks
}

// Stop ends all members; their data is thrown away.
func (s *Set) Stop() {
	for _, m := range s.Members {
		if m != nil {
			_ = m.admin.Disconnect(context.Background())
			_ = m.end(syscall.SIGKILL, 10*time.Second)
			m.Relay.Close()
		}
	}
}
