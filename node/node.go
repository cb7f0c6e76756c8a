// Package node lends a language model to a network: it keeps a tunnel to each
// relay it is told of, opens the requests that arrive there and hands them to
// its engine.
//
// A node needs no open port. It publishes, through the relays, a descriptor
// that it signs with its own key: the keys to seal to, its models, how many
// exchanges it takes. Keys and descriptor are replaced every half hour, and
// whenever the engine's models change. See spec/tunnel.md and spec/identity.md.
package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"token.place/engine"
	"token.place/identity"
	"token.place/internal/telemetry"
	"token.place/ohttp"
	"token.place/tunnel"
)

// Config is what a node is made of.
type Config struct {
	// Credential is the node's identity. Required.
	Credential *identity.Credential

	// Relays are where the node offers itself: a tunnel to each. At least one.
	Relays []identity.Relay

	// Engine runs the models. Required.
	Engine *engine.Engine

	// Capacity is how many exchanges run at one time, over all relays. Zero
	// means 4.
	Capacity int

	// Drain is how long running exchanges may go on once Run is told to stop.
	// Zero means 30 s.
	Drain time.Duration

	// Keys says how long sealing keys live. The zero value is the protocol's
	// default. A descriptor is valid for Life and Overlap together, at most 2 h.
	Keys ohttp.KeysConfig

	// Dial connects to a relay's address. Nil means a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// Log gets what the node does, nothing of any exchange. Nil discards it.
	Log *slog.Logger
}

const (
	defaultCapacity = 4
	defaultDrain    = 30 * time.Second

	// modelsEvery is how often the engine is asked what it serves.
	modelsEvery = 15 * time.Second

	// modelsTimeout is how long it may take to say so.
	modelsTimeout = 10 * time.Second

	// replacedWait is how long a node that was replaced stays away.
	replacedWait = 30 * time.Second

	// settledAfter is how long a relay that asked who this node is must have kept
	// it to have taken it.
	settledAfter = 2 * time.Second

	// refusedWait is the least time between two attempts at a relay that refuses.
	refusedWait = 4 * time.Second

	// handshakeTimeout bounds dialling and TLS to a relay.
	handshakeTimeout = 10 * time.Second
)

// Node is a node. Its methods may be called concurrently.
type Node struct {
	cfg     Config
	cert    tls.Certificate
	keys    *ohttp.Keys
	handler http.Handler
	state   state
}

// New checks cfg and makes the node's first keys.
func New(cfg Config) (*Node, error) {
	switch {
	case cfg.Credential == nil:
		return nil, errors.New("node: no credential")
	case cfg.Engine == nil:
		return nil, errors.New("node: no engine")
	case len(cfg.Relays) == 0:
		return nil, errors.New("node: no relay: name at least one")
	case cfg.Capacity < 0 || cfg.Capacity > 1000:
		return nil, fmt.Errorf("node: capacity %d is not within 1 to 1000", cfg.Capacity)
	}
	if cfg.Capacity == 0 {
		cfg.Capacity = defaultCapacity
	}
	if cfg.Drain == 0 {
		cfg.Drain = defaultDrain
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Log == nil {
		cfg.Log = telemetry.Discard()
	}
	cert, err := cfg.Credential.Certificate()
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	keys, err := ohttp.NewKeys(cfg.Keys)
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	n := &Node{cfg: cfg, cert: cert, keys: keys}
	n.state.init(cfg.Capacity)
	sealed := &ohttp.Handler{Keys: keys, Next: n.limit(cfg.Engine), OnPanic: func(stack []byte) {
		cfg.Log.Error("a bug: the code that answers panicked", "reason", telemetry.Reason("please report it, with the stack that TOKENPLACE_ENV=development shows"), "stack", string(stack))
	}}
	mux := http.NewServeMux()
	mux.Handle("POST /exchange", sealed)
	n.handler = mux
	return n, nil
}

// ID returns the node's identity.
func (n *Node) ID() identity.ID { return n.cfg.Credential.ID() }

// Models returns what the node offers now.
func (n *Node) Models() []identity.Model {
	s, _ := n.state.get()
	return slices.Clone(s.models)
}

// Run offers the node to its relays until ctx is done and then drains. It
// returns when everything it started has ended; its keys are destroyed by then.
func (n *Node) Run(ctx context.Context) error {
	defer n.keys.Close()
	n.refresh(ctx)
	if err := n.publish(); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	s, _ := n.state.get()
	n.cfg.Log.Info("node starts", "id", string(n.ID()), "engine", n.cfg.Engine.Name(), "models", len(s.models), "capacity", n.cfg.Capacity)
	var wg sync.WaitGroup
	for _, r := range n.cfg.Relays {
		wg.Go(func() { n.keepTunnel(ctx, r) })
	}
	err := n.renew(ctx)
	n.cfg.Log.Info("node drains")
	wg.Wait()
	return err
}

// renew replaces keys and descriptor when it is time, until ctx is done.
func (n *Node) renew(ctx context.Context) error {
	rotate := time.NewTicker(n.keys.Life())
	defer rotate.Stop()
	look := time.NewTicker(modelsEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			if !n.refresh(ctx) {
				continue
			}
		case <-rotate.C:
			if err := n.keys.Rotate(time.Now()); err != nil {
				return fmt.Errorf("node: %w", err)
			}
		case <-n.keys.Wanted():
			if err := n.keys.Rotate(time.Now()); err != nil {
				return fmt.Errorf("node: %w", err)
			}
		}
		if err := n.publish(); err != nil {
			return fmt.Errorf("node: %w", err)
		}
	}
}

// publish signs what the node offers now and gives it to every tunnel.
func (n *Node) publish() error {
	s, _ := n.state.get()
	now := time.Now()
	b, err := n.cfg.Credential.Sign(identity.Descriptor{
		Capacity:  n.cfg.Capacity,
		Keys:      n.keys.Public(),
		Models:    s.models,
		NotBefore: now,
		NotAfter:  n.keys.NotAfter(),
	})
	if err != nil {
		return err
	}
	n.state.setBundle(b)
	return nil
}

// refresh asks the engine for its models and reports whether they changed. An
// engine that does not answer offers none: exchanges go elsewhere until it does.
func (n *Node) refresh(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, modelsTimeout)
	defer cancel()
	found, err := n.cfg.Engine.Models(ctx)
	if ctx.Err() == context.Canceled {
		return false
	}
	var models []identity.Model
	for _, m := range found {
		if identity.ValidModelID(m.ID) && len(models) < identity.MaxModels {
			models = append(models, identity.Model{ID: m.ID, ContextLength: m.ContextLength})
		}
	}
	known, _ := n.state.get()
	changed := n.state.setModels(models)
	if changed && len(models) < len(found) {
		n.cfg.Log.Warn("models left out", "reason", telemetry.Reason("their names are not printable, or there are more than 128"))
	}
	switch {
	case err != nil && changed:
		n.cfg.Log.Warn("engine does not answer", "reason", telemetry.Reason("start it, or check the address that the node was given; it is asked again every 15 s"))
	case changed && len(models) == 0:
		n.cfg.Log.Warn("engine has no models", "reason", telemetry.Reason("pull or load one; no work arrives until then"))
	case changed && known.bundle != (identity.Bundle{}): // not what the node starts with
		n.cfg.Log.Info("models change", "models", len(models))
	}
	return changed
}

// keepTunnel keeps one tunnel to r until ctx is done.
func (n *Node) keepTunnel(ctx context.Context, r identity.Relay) {
	log := n.cfg.Log.With("relay", string(r.ID))
	var (
		backoff tunnel.Backoff
		told    telemetry.Reason // by the last warning; "" once the tunnel was up again
		first   = true
	)
	for {
		start := time.Now()
		err := n.tunnel(ctx, r, func() {
			if first || told != "" {
				log.Info("connected to the relay")
			}
			first, told = false, ""
		})
		if ctx.Err() != nil {
			return
		}
		stood := time.Since(start)
		wait := backoff.Next(stood)
		if errors.Is(err, tunnel.ErrReplaced) {
			// Another process runs with this identity. Taking the tunnel back at
			// once would only make the two take turns.
			wait = replacedWait
		}
		if errors.As(err, new(*tunnel.RefusedError)) {
			wait = max(wait, refusedWait) // it would not help to ask more often
		}
		// Said once for each trouble, however often it is tried again.
		if why := reason(err); why != told {
			log.Warn("no tunnel to a relay; trying again", "reason", why)
			told = why
		} else {
			log.Debug("no tunnel to a relay", "reason", why, "wait", wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// tunnel dials r and serves exchanges until that connection ends. It calls up
// when the relay has taken this node, and not after it has returned.
func (n *Node) tunnel(ctx context.Context, r identity.Relay, up func()) error {
	conn, err := n.dial(ctx, r)
	if err != nil {
		return err
	}
	draining := make(chan struct{})
	up = sync.OnceFunc(up)
	mux := http.NewServeMux()
	mux.Handle("/", n.handler)
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		// A relay asks and may then refuse: it has taken the node when it stays.
		ended := make(chan struct{})
		var settle sync.WaitGroup
		settle.Go(func() {
			wait := time.NewTimer(settledAfter)
			defer wait.Stop()
			select {
			case <-wait.C:
				up()
			case <-ended:
			}
		})
		n.serveStatus(w, r, draining)
		close(ended)
		settle.Wait()
	})
	return tunnel.Serve(ctx, conn, mux, tunnel.ServeConfig{
		Capacity: n.cfg.Capacity,
		Drain:    n.cfg.Drain,
		OnDrain:  func() { close(draining) },
	})
}

var errDial = errors.New("relay cannot be reached")

// dial connects to r and proves who both ends are.
func (n *Node) dial(ctx context.Context, r identity.Relay) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	raw, err := n.cfg.Dial(ctx, "tcp", r.Addr())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDial, err)
	}
	cfg := r.TLS(tunnel.Proto)
	cfg.Certificates = []tls.Certificate{n.cert}
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	if conn.ConnectionState().NegotiatedProtocol != tunnel.Proto {
		conn.Close()
		return nil, errProto
	}
	return conn, nil
}

var errProto = errors.New("not a relay")

// reason puts an error into the operator's words. It returns constants only: an
// error may quote the peer.
func reason(err error) telemetry.Reason {
	var (
		cert    *tls.CertificateVerificationError
		refused *tunnel.RefusedError
	)
	switch {
	case errors.As(err, &refused):
		return refusals[refused.Reason]
	case errors.Is(err, identity.ErrPeer):
		return "the relay is not the one in the URL: compare the ID after # with what the relay printed when it started"
	case errors.As(err, &cert):
		return "the relay's certificate is not known: put the ID that the relay printed after # in its URL"
	case errors.Is(err, errProto):
		return "what answers there is not a relay: check host and port"
	case errors.Is(err, errDial):
		return "no connection to the relay: check host, port and your network"
	case errors.Is(err, tunnel.ErrReplaced):
		return "a newer connection with this node's identity took its place, and this one comes back in 30 s: does another process use the same identity file?"
	case errors.Is(err, tunnel.ErrDrained):
		return "the relay is restarting"
	}
	return "the connection was lost"
}

// refusals puts a relay's reasons into words.
var refusals = map[tunnel.Refusal]telemetry.Reason{
	"":                       "the relay refuses this node and does not say why",
	tunnel.RefusedExpired:    "the relay finds this node's descriptor not valid now: set the clocks of both machines right",
	tunnel.RefusedMalformed:  "the relay does not understand this node: update whichever of the two is older",
	tunnel.RefusedNotAllowed: "the relay carries only for the nodes on its list: ask its operator to add --allow with this node's ID",
	tunnel.RefusedFull:       "the relay has as many nodes as it takes: try another one",
}
