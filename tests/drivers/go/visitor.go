package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// visit obeys the orders of `tests/drivers/logins`; `python/visitor.py` says what is asked and answered.
func visit() {
	clients := map[string]*mongo.Client{}
	orders := bufio.NewScanner(os.Stdin)
	for orders.Scan() {
		reply, err := obey(orders.Bytes(), clients)
		answer := bson.M{}
		if err == nil && reply != nil {
			answer["reply"] = reply
		}
		if err != nil {
			var code any
			if found := codeOf(err); found > 0 {
				code = found
			}
			answer["error"] = bson.D{e("kind", fmt.Sprintf("%T", err)), e("code", code), e("message", err.Error())}
		}
		fmt.Println(string(must(bson.MarshalExtJSON(answer, false, false))))
	}
	try(orders.Err())
}

func obey(line []byte, clients map[string]*mongo.Client) (bson.Raw, error) {
	var order struct {
		Open, Close, On, URI, DB string
		Run                      bson.D
	}
	try(bson.UnmarshalExtJSON(line, false, &order))
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	defer cancel()
	switch {
	case order.Open != "":
		// What ends a session waits for a server, also where there is none.
		o := options.Client().ApplyURI(order.URI).SetTimeout(10 * time.Second)
		client, err := mongo.Connect(o)
		clients[order.Open] = client
		return nil, err
	case order.Close != "":
		err := clients[order.Close].Disconnect(ctx)
		delete(clients, order.Close)
		return nil, err
	default:
		client := clients[order.On]
		if client == nil {
			return nil, errors.New("no such client")
		}
		return client.Database(order.DB).RunCommand(ctx, order.Run).Raw()
	}
}
