package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// Config is how a relay uses tunnels. Its zero value is good.
type Config struct {
	// Ping is the silence after which a node is asked for a sign of life, and
	// PingTimeout how long it has to answer. Zero means 15 s and 5 s.
	Ping, PingTimeout time.Duration
}

// Conn is the relay's end of a tunnel, an http.RoundTripper whose requests all
// go to the node. Its methods may be called concurrently.
type Conn struct {
	conn     *conn
	http     *http.ClientConn
	capacity int

	mu       sync.Mutex // guards the fields below
	control  int        // 1 while the status is open: its stream is no exchange
	draining bool       // asked to drain: no more exchanges
}

// Open starts the relay's end on nc, a connection it accepted and secured, and
// returns when the node has said how many exchanges it takes. It owns nc, also
// when it fails. ctx limits Open, not the Conn.
func Open(ctx context.Context, nc net.Conn, cfg Config) (*Conn, error) {
	tune(nc)
	c := newConn(nc)
	cc, err := cfg.transport().NewClientConn(context.WithValue(ctx, connKey{}, c), "http", "node:0")
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("open tunnel: %w", err)
	}
	// The client's first write is its preface; its second acknowledges the
	// node's settings, and until then Reserve would go by a guess.
	select {
	case <-c.settings:
	case <-c.done:
		err = io.ErrUnexpectedEOF
	case <-ctx.Done():
		err = ctx.Err()
	}
	capacity := min(cc.Available()-reservedStreams, maxExchanges)
	if err == nil && capacity < 1 {
		err = errors.New("the node takes no exchanges")
	}
	if err != nil {
		cc.Close()
		return nil, fmt.Errorf("open tunnel: %w", err)
	}
	return &Conn{conn: c, http: cc, capacity: capacity}, nil
}

// transports holds one http.Transport for each Config, a constant in practice:
// one for each tunnel would be 2 KB of the 40 that an idle node may cost.
var transports sync.Map

// connKey finds, in the context of NewClientConn, the conn to use.
type connKey struct{}

func (cfg Config) transport() *http.Transport {
	if t, ok := transports.Load(cfg); ok {
		return t.(*http.Transport)
	}
	t, _ := transports.LoadOrStore(cfg, &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return ctx.Value(connKey{}).(*conn), nil
		},
		Protocols:              protocols(),
		HTTP2:                  settings(cfg.Ping, cfg.PingTimeout, relayPing),
		DisableCompression:     true,
		MaxResponseHeaderBytes: 8 << 10,
	})
	return t.(*http.Transport)
}

// RoundTrip sends a request to the node. It never queues: if the node has no
// room, drains or is gone it returns ErrUnavailable at once. GET /status, which
// stays open, does not count as an exchange. When the connection dies the
// bodies of running responses return an error that is not io.EOF. As in a
// server, req.Body should fail when req's context is done.
func (c *Conn) RoundTrip(req *http.Request) (*http.Response, error) {
	isStatus := req.URL.Path == "/status"
	if !c.reserve(isStatus) {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, ErrUnavailable
	}
	if isStatus {
		c.setControl(1)
	}
	res, err := c.http.RoundTrip(req)
	if err != nil {
		if isStatus {
			c.setControl(0)
		}
		return nil, fmt.Errorf("send to node: %w", err)
	}
	if isStatus {
		res.Body = &statusBody{res.Body, c}
	}
	return res, nil
}

// statusBody is the body of GET /status. When it ends its stream does.
type statusBody struct {
	io.ReadCloser
	conn *Conn
}

func (b *statusBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.conn.setControl(0)
	}
	return n, err
}

func (b *statusBody) Close() error {
	b.conn.setControl(0)
	return b.ReadCloser.Close()
}

func (c *Conn) setControl(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.control = n
}

// reserve takes a stream, or says that there is none.
func (c *Conn) reserve(control bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !control && (c.draining || c.exchanges() >= c.capacity) {
		return false
	}
	// Past the node's limit RoundTrip would wait; after a GOAWAY only Reserve knows.
	return c.http.Reserve() == nil
}

// exchanges counts the streams in use but the status; c.mu is held.
func (c *Conn) exchanges() int { return max(0, c.http.InFlight()-c.control) }

// Capacity is how many exchanges the node takes at once.
func (c *Conn) Capacity() int { return c.capacity }

// InFlight is how many exchanges are running, those included that were
// cancelled and that the node has not confirmed.
func (c *Conn) InFlight() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.exchanges()
}

// Available reports whether the node would take an exchange now.
func (c *Conn) Available() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.draining && c.http.Available() > 0 && c.exchanges() < c.capacity
}

// Done is closed when the connection is: lost, drained or by Close.
func (c *Conn) Done() <-chan struct{} { return c.conn.done }

// Close ends the connection at once, running exchanges with it.
func (c *Conn) Close() error { return c.http.Close() }

// Drain takes no more exchanges and asks the node to dial again elsewhere. It
// returns when the running ones have ended and the connection is closed, or
// closes it when ctx is done.
func (c *Conn) Drain(ctx context.Context) error { return c.drain(ctx, "/drain") }

func (c *Conn) drain(ctx context.Context, path string) error {
	c.refuse()
	if err := c.askDrain(ctx, path); err != nil {
		c.Close()
		return fmt.Errorf("drain tunnel: %w", err)
	}
	select {
	case <-c.Done():
		return nil
	case <-ctx.Done():
		c.Close()
		return fmt.Errorf("drain tunnel: %w", ctx.Err())
	}
}

// finishPoll is how often Finish looks.
const finishPoll = time.Second

// Finish is for a node that drains by itself: it takes no more exchanges, waits
// until none is running, or until ctx is done, and closes the connection. It
// ends the status, which the caller should have closed or read to its end.
func (c *Conn) Finish(ctx context.Context) {
	defer c.Close()
	c.refuse()
	poll := time.NewTicker(finishPoll)
	defer poll.Stop()
	for c.InFlight() > 0 {
		select {
		case <-c.Done():
			return
		case <-poll.C:
		case <-ctx.Done():
			return
		}
	}
}

func (c *Conn) askDrain(ctx context.Context, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://node"+path, nil)
	if err != nil {
		return err
	}
	if !c.reserve(true) {
		return ErrUnavailable
	}
	res, err := c.http.RoundTrip(req)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

// refuse takes no more exchanges.
func (c *Conn) refuse() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
}

// isDraining reports whether this end asked for a drain.
func (c *Conn) isDraining() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.draining
}
