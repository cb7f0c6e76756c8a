package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"token.place/identity"
	"token.place/tunnel"
)

// configureTLS makes the two configurations. Sessions are not resumed: a ticket
// would tell the relay which connections are the same client's.
func (r *Relay) configureTLS() error {
	cert, err := r.cfg.Credential.Certificate()
	if err != nil {
		return err
	}
	r.tls = &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{"h2", "http/1.1"},
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true, // one record for a piece, not ten
	}
	r.tls.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if r.cfg.Certificate != nil {
			if c, err := r.cfg.Certificate(hello); c != nil || err != nil {
				return c, err
			}
		}
		return &cert, nil
	}
	// Only who asks for the tunnel is asked for a certificate: what a client
	// might send would be an identity we do not want to know.
	r.tunnelTLS = r.tls.Clone()
	r.tunnelTLS.NextProtos = []string{tunnel.Proto}
	r.tunnelTLS.ClientAuth = tls.RequireAnyClientCert
	r.tunnelTLS.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := identity.PeerID(cs)
		return err
	}
	r.tls.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedProtos, tunnel.Proto) {
			return r.tunnelTLS, nil
		}
		return nil, nil
	}
	return nil
}

// Serve accepts nodes and clients on ln, which carries raw connections, until
// ctx is done. Then it drains: it accepts no more, asks nodes to go elsewhere,
// lets running exchanges finish for Config.DrainTimeout, and returns nil when
// everything it started has stopped. It closes ln. A relay serves once.
func (r *Relay) Serve(ctx context.Context, ln net.Listener) error {
	if !r.phase.CompareAndSwap(starting, serving) {
		ln.Close()
		return errors.New("serve relay: it serves once")
	}
	r.log.Info("relay starts", "listen", ln.Addr().String(), "id", string(r.cfg.Credential.ID()))
	s := &server{relay: r, clients: newFeed(ln.Addr()), hurry: make(chan struct{})}
	s.ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.http = r.httpServer(s)
	s.running.Go(func() { s.http.Serve(s.clients) })

	accepted := make(chan error, 1)
	s.running.Go(func() { accepted <- s.accept(ctx, ln) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-accepted:
		accepted <- err
	}
	r.phase.Store(draining)
	r.log.Info("relay drains")
	ln.Close()
	<-accepted
	s.drain(ctx)
	r.log.Info("relay stops")
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve relay: %w", err)
	}
	return nil
}

func (r *Relay) httpServer(s *server) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	return &http.Server{
		Handler:           r,
		Protocols:         &protocols,
		ReadHeaderTimeout: r.cfg.HeaderTimeout,
		IdleTimeout:       r.cfg.IdleTimeout,
		MaxHeaderBytes:    maxHead,
		ErrorLog:          log.New(io.Discard, "", 0), // it would say who did what
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          r.cfg.MaxStreams,
			MaxReceiveBufferPerConnection: 2 << 20,
			MaxReceiveBufferPerStream:     1 << 20, // a body's speed over distance
			MaxDecoderHeaderTableSize:     4 << 10,
			SendPingTimeout:               r.cfg.StallTimeout / 2,
			PingTimeout:                   r.cfg.StallTimeout / 2,
			WriteByteTimeout:              r.cfg.StallTimeout,
		},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if c, ok := c.(*strictConn); ok {
				return context.WithValue(ctx, connKey{}, c)
			}
			return ctx
		},
		ConnState: s.connState,
	}
}

// server is one call of Serve.
type server struct {
	relay   *Relay
	http    *http.Server
	clients *feed
	ctx     context.Context // of the tunnels: ends when the drain has
	stop    context.CancelFunc
	hurry   chan struct{} // closed when nobody may linger
	running sync.WaitGroup
}

// accept takes connections, no more than MaxHandshakes of them at a time
// between accepting and having proved themselves.
func (s *server) accept(ctx context.Context, ln net.Listener) error {
	places := make(chan struct{}, s.relay.cfg.MaxHandshakes)
	var pause time.Duration
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		nc, err := ln.Accept()
		if err != nil {
			<-places
			if t, ok := err.(interface{ Temporary() bool }); !ok || !t.Temporary() || ctx.Err() != nil {
				return err
			}
			// Out of file descriptors, most likely: some will be closed.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		pause = 0
		// When more than half of the places are taken newcomers are in a hurry:
		// honest peers need a few round trips, and those who hold a place for
		// nothing must not keep others out.
		limit := s.relay.cfg.HeaderTimeout
		if len(places) > cap(places)/2 {
			limit /= 5
		}
		s.running.Go(func() {
			s.greet(ctx, &peer{nc}, limit)
			<-places
		})
	}
}

// greet secures a connection and gives it to who serves its protocol. It returns
// within about limit, when the other end has proved itself or is refused.
func (s *server) greet(ctx context.Context, p *peer, limit time.Duration) {
	deadline, cancel := context.WithTimeout(ctx, limit)
	t := tls.Server(p, s.relay.tls)
	err := t.HandshakeContext(deadline)
	cancel()
	if err != nil {
		p.Close()
		return
	}
	switch t.ConnectionState().NegotiatedProtocol {
	case tunnel.Proto:
		if n := s.relay.join(s.ctx, t, limit); n != nil {
			// Elsewhere, as this goroutine's stack has grown in the handshake.
			s.running.Go(func() { n.serve(s.ctx) })
		}
	case "h2":
		s.clients.push(t)
	default:
		s.clients.push(&strictConn{Conn: t, hurry: s.hurry})
	}
}

// connState counts the clients' connections that net/http runs.
func (s *server) connState(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.running.Add(1) // the goroutine of http.Serve still counts
	case http.StateClosed:
		s.running.Done()
	}
}

// drain ends everything, the running exchanges last.
func (s *server) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.relay.cfg.DrainTimeout)
	defer cancel()
	var both sync.WaitGroup
	both.Go(func() { s.relay.hub.Drain(ctx) })
	both.Go(func() { s.http.Shutdown(ctx) })
	both.Wait()
	close(s.hurry)
	s.http.Close()
	s.stop()
	s.relay.mu.Lock()
	s.relay.closed = true
	s.relay.mu.Unlock()
	s.relay.requests.Wait()
	s.running.Wait()
}

// peer is a connection whose other end has no address: nothing above it can
// write one down. A limit per address would take a keyed hash of it here.
type peer struct{ net.Conn }

// nowhere is every peer's address.
type nowhere struct{}

func (nowhere) Network() string { return "tcp" }
func (nowhere) String() string  { return "peer" }

func (*peer) RemoteAddr() net.Addr { return nowhere{} }

// NetConn is for the tunnel, which sets socket options.
func (p *peer) NetConn() net.Conn { return p.Conn }

func (p *peer) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	return n, bare(err)
}

func (p *peer) Write(b []byte) (int, error) {
	n, err := p.Conn.Write(b)
	return n, bare(err)
}

// bare takes the addresses off an error: they would become text as soon as
// somebody wraps it.
func bare(err error) error {
	if op, ok := err.(*net.OpError); ok {
		return op.Err
	}
	return err
}

// feed is a listener whose connections have done their handshake.
type feed struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
	addr  net.Addr
}

func newFeed(addr net.Addr) *feed {
	return &feed{conns: make(chan net.Conn), done: make(chan struct{}), addr: addr}
}

func (f *feed) push(c net.Conn) {
	select {
	case f.conns <- c:
	case <-f.done:
		c.Close()
	}
}

func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

func (f *feed) Close() error {
	f.once.Do(func() { close(f.done) })
	return nil
}

func (f *feed) Addr() net.Addr { return f.addr }
