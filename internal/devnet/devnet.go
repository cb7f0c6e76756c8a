// Package devnet runs a whole network in one process: a relay, nodes with an
// engine, and the local server that an OpenAI client talks to. It is what
// "tokenplace dev" starts and what tests of the whole run against; nothing in
// it is a stand-in for the real parts.
package devnet

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"token.place/client"
	"token.place/engine"
	"token.place/identity"
	"token.place/node"
	"token.place/relay"
)

// Options says what network to start. Its zero value is two nodes with the
// pocket model on free loopback ports.
type Options struct {
	// Engine runs the models, for all nodes. Nil is a pocket model for each node.
	Engine *engine.Engine

	// Nodes is how many nodes to start; zero means 2.
	Nodes int

	// Capacity is how many exchanges each node runs at once; zero is the node's
	// default.
	Capacity int

	// Server is where the local server listens, RelayAddr where the relay does.
	// Empty means any free port of 127.0.0.1.
	Server, RelayAddr string

	// Aliases are model names that stand for others.
	Aliases map[string]string

	// Listen and Dial are the network; nil is this machine's.
	Listen func(network, addr string) (net.Listener, error)
	Dial   func(ctx context.Context, network, addr string) (net.Conn, error)

	// RelayLog gets what the relay logs, Log what all others do. Nil discards.
	RelayLog, Log *slog.Logger
}

// Net is a running network.
type Net struct {
	BaseURL string            // of the local server: http://127.0.0.1:4117/v1
	Relay   identity.Relay    // where the relay is, and its ID
	Nodes   []*node.Node      // in the order they were started
	Client  *client.Transport // what the local server sends requests with

	server, nodes, relay layer      // in the order in which they stop
	connected            func() int // nodes, by the relay's count
	failed               chan error // of the first part that ended on its own
}

// layer is parts of the network that stop together.
type layer struct {
	stop  context.CancelFunc
	parts sync.WaitGroup
}

// readyWithin bounds the start: a network on one machine is up in well under a
// second, unless something is wrong.
const readyWithin = 30 * time.Second

// Start starts a network and returns when every node can be reached through
// it. The network runs until Close, which must be called.
func Start(ctx context.Context, o Options) (*Net, error) {
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.Listen == nil {
		o.Listen = net.Listen
	}
	if o.Server == "" {
		o.Server = "127.0.0.1:0"
	}
	if o.RelayAddr == "" {
		o.RelayAddr = "127.0.0.1:0"
	}
	n := &Net{failed: make(chan error, 1)}
	if err := n.start(ctx, o); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func (n *Net) start(ctx context.Context, o Options) error {
	if err := n.startRelay(o); err != nil {
		return fmt.Errorf("start relay: %w", err)
	}
	nodes, ids := n.nodes.begin(), []identity.ID{}
	for i := range o.Nodes {
		one, err := newNode(o, n.Relay)
		if err != nil {
			return fmt.Errorf("start node %d: %w", i+1, err)
		}
		n.Nodes, ids = append(n.Nodes, one), append(ids, one.ID())
		n.run(&n.nodes, func() error { return one.Run(nodes) })
	}
	if err := n.startServer(o, ids); err != nil {
		return fmt.Errorf("start local server: %w", err)
	}
	return n.ready(ctx)
}

// begin opens the layer and returns the context of its parts.
func (l *layer) begin() context.Context {
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	return ctx
}

// end stops the layer's parts and waits for them.
func (l *layer) end() {
	if l.stop != nil {
		l.stop()
	}
	l.parts.Wait()
}

// run runs a part. One that ends with an error ends the network, see Wait.
func (n *Net) run(l *layer, part func() error) {
	l.parts.Go(func() {
		if err := part(); err != nil {
			select {
			case n.failed <- err:
			default:
			}
		}
	})
}

func (n *Net) startRelay(o Options) error {
	cred, err := identity.NewCredential()
	if err != nil {
		return err
	}
	r, err := relay.New(relay.Config{Credential: cred, Log: o.RelayLog})
	if err != nil {
		return err
	}
	ln, err := o.Listen("tcp", o.RelayAddr)
	if err != nil {
		return err
	}
	n.Relay, err = identity.ParseRelay("https://" + ln.Addr().String() + "/#" + string(cred.ID()))
	if err != nil {
		ln.Close()
		return err
	}
	n.connected = r.Connected
	ctx := n.relay.begin()
	n.run(&n.relay, func() error { return r.Serve(ctx, ln) })
	return nil
}

func newNode(o Options, r identity.Relay) (*node.Node, error) {
	cred, err := identity.NewCredential()
	if err != nil {
		return nil, err
	}
	eng := o.Engine
	if eng == nil {
		if eng, err = newPocket(); err != nil {
			return nil, err
		}
	}
	return node.New(node.Config{
		Credential: cred,
		Relays:     []identity.Relay{r},
		Engine:     eng,
		Capacity:   o.Capacity,
		Dial:       o.Dial,
		Log:        o.Log,
	})
}

func (n *Net) startServer(o Options, nodes []identity.ID) error {
	var err error
	n.Client, err = client.New(client.Config{
		Relays:  []identity.Relay{n.Relay},
		Trust:   identity.Trust{Nodes: nodes},
		Aliases: o.Aliases,
		Dial:    o.Dial,
	})
	if err != nil {
		return err
	}
	srv, err := client.NewServer(client.ServerConfig{Transport: n.Client})
	if err != nil {
		return err
	}
	ln, err := o.Listen("tcp", o.Server)
	if err != nil {
		return err
	}
	n.BaseURL = "http://" + ln.Addr().String() + "/v1"
	ctx := n.server.begin()
	n.run(&n.server, func() error { return srv.Serve(ctx, ln) })
	return nil
}

// ready waits until the relay lists every node: they connect on their own time
// and tell nobody else.
func (n *Net) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		up := n.connected()
		if up == len(n.Nodes) {
			return nil
		}
		select {
		case err := <-n.failed:
			return err
		case <-ctx.Done():
			return fmt.Errorf("%d of %d nodes are connected to the relay: %w", up, len(n.Nodes), ctx.Err())
		case <-again.C:
		}
	}
}

// Wait returns when ctx is done, nil, or when a part of the network ended on
// its own, with the reason.
func (n *Net) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-n.failed:
		return err
	}
}

// Close drains the network from the app's side on: the local server finishes
// its answers, then the nodes go, then the relay. It returns when all is over.
func (n *Net) Close() {
	n.server.end()
	if n.Client != nil {
		n.Client.Close()
	}
	n.nodes.end()
	n.relay.end()
}
