package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// ServeConfig is how a node serves a tunnel.
type ServeConfig struct {
	// Capacity is how many exchanges may run at once; at least 1.
	Capacity int

	// Drain is how long running exchanges may go on after a drain began.
	// Zero means 30 s.
	Drain time.Duration

	// OnDrain, unless nil, is called once when a drain begins: the handler of
	// GET /status should say so and end, and the node may dial a new tunnel.
	// The connection takes no new requests by then.
	OnDrain func()

	// Ping is the silence after which the relay is asked for a sign of life, and
	// PingTimeout how long it has to answer. Zero means 20 s and 5 s.
	Ping, PingTimeout time.Duration
}

// Serve answers the requests that arrive on nc, a connection the node dialled
// and secured, with h. It closes nc and returns when the connection has ended
// and every handler has returned:
//
//   - nil when ctx was done: no new requests, cfg.Drain for running ones
//   - ErrDrained or ErrReplaced when the relay asked for that
//   - a *RefusedError when the relay does not take this node
//   - an error wrapping io.ErrUnexpectedEOF when the connection was lost
//
// POST /exchange and GET /status are for h; a handler's request context is
// done when the relay cancels the request or the connection dies, not when ctx
// is. h should read a request's body without waiting for its turn: bodies that
// are left lying share the 4 MB a connection may have in flight. Reading fails
// with os.ErrDeadlineExceeded after 30 s of waiting for the next 64 KiB.
func Serve(ctx context.Context, nc net.Conn, h http.Handler, cfg ServeConfig) error {
	if cfg.Capacity < 1 || cfg.Capacity > maxExchanges {
		nc.Close()
		return fmt.Errorf("serve tunnel: capacity %d is not in 1 to %d", cfg.Capacity, maxExchanges)
	}
	if cfg.Drain == 0 {
		cfg.Drain = 30 * time.Second
	}
	tune(nc)
	s := &server{
		handler: h,
		up:      make(chan struct{}),
		ended:   make(chan struct{}),
		drain:   make(chan error, 1),
	}
	s.handlers.Add(1) // ours, so that Add and Wait never race at zero
	conf := settings(cfg.Ping, cfg.PingTimeout, nodePing)
	conf.MaxConcurrentStreams = cfg.Capacity + reservedStreams
	conf.MaxReceiveBufferPerConnection = nodeWindow
	s.http = &http.Server{
		Handler:           s,
		Protocols:         protocols(),
		HTTP2:             conf,
		MaxHeaderBytes:    8 << 10,
		ReadHeaderTimeout: 10 * time.Second, // for the relay's first bytes
		ErrorLog:          log.New(io.Discard, "", 0),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ConnState:         s.connState,
	}
	c := newConn(nc)
	c.yields = true
	return s.run(ctx, c, cfg)
}

// server is one call of Serve.
type server struct {
	http    *http.Server
	handler http.Handler
	up      chan struct{} // closed when HTTP/2 runs and a GOAWAY would be sent
	ended   chan struct{} // closed when the connection is closed
	drain   chan error    // why the relay wants a drain

	once     sync.Once // up
	handlers sync.WaitGroup
	mu       sync.Mutex // guards the field below
	closed   bool       // no handler starts any more
}

func (s *server) run(ctx context.Context, c *conn, cfg ServeConfig) error {
	ln := &listener{conns: make(chan net.Conn, 1), closed: make(chan struct{}), addr: c.LocalAddr()}
	ln.conns <- c
	serving := make(chan struct{})
	go func() {
		defer close(serving)
		s.http.Serve(ln)
	}()

	err := s.wait(ctx, cfg)

	s.http.Close()
	<-serving
	select {
	case <-ln.conns: // never accepted
	default:
		<-s.ended
	}
	c.Close()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.handlers.Done()
	s.handlers.Wait()
	return err
}

// wait returns when the connection has ended or should.
func (s *server) wait(ctx context.Context, cfg ServeConfig) error {
	var why error
	select {
	case <-s.ended:
		select {
		case why = <-s.drain: // it came just before
			return why
		default:
		}
		return fmt.Errorf("serve tunnel: %w", io.ErrUnexpectedEOF)
	case <-ctx.Done():
	case why = <-s.drain:
	}
	select {
	case <-s.up:
	default:
		return why // HTTP/2 has not begun: there is nothing to drain
	}
	// With a context that is done Shutdown sends the GOAWAY and does not wait:
	// we do, without its polling.
	done, cancel := context.WithCancel(context.Background())
	cancel()
	s.http.Shutdown(done)
	if cfg.OnDrain != nil {
		cfg.OnDrain()
	}
	limit := time.NewTimer(cfg.Drain)
	defer limit.Stop()
	select {
	case <-s.ended:
	case <-limit.C:
	}
	return why
}

// connState follows the connection: net/http calls HTTP/2 idle when it has
// registered the connection for Shutdown.
func (s *server) connState(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateIdle:
		s.once.Do(func() { close(s.up) })
	case http.StateClosed:
		close(s.ended)
	}
}

// ServeHTTP counts the handlers that run and takes the requests that are for
// the tunnel itself.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.handlers.Add(1)
	s.mu.Unlock()
	defer s.handlers.Done()

	w.Header()["Date"] = nil // nobody's business, and 10,000 copies of it at the relay
	if r.URL.Path != "/drain" && r.URL.Path != "/refused" {
		defer pace(w, r)()
		s.handler.ServeHTTP(w, r)
		return
	}
	if r.Method != http.MethodPost {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	why := ErrDrained
	switch {
	case r.URL.Path == "/refused":
		why = refusedError(r.URL.RawQuery)
	case r.URL.RawQuery == "replaced":
		why = ErrReplaced
	}
	w.WriteHeader(http.StatusNoContent)
	select {
	case s.drain <- why:
	default: // asked before
	}
}

// listener hands out one connection. Then Accept waits for Close: net/http
// would end the connection's server if it returned, and never end if it did
// not return on Close.
type listener struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
	addr   net.Addr
}

var errListenerClosed = errors.New("listener closed")

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, errListenerClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }
