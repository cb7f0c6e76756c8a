package client

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

const (
	// drainTime is how long Serve lets requests finish once its context is done,
	// and cutTime how long it then waits for those that it cut off to say so.
	drainTime = 30 * time.Second
	cutTime   = 2 * time.Second
	// lastBytes is how long what is not yet a request has to become one, while the
	// server stops.
	lastBytes = 2 * time.Second
)

var errStopping = failf(http.StatusServiceUnavailable, "shutting_down", "the local server is stopping: send the request again")

// drainKey is where a request's context has the one whose end begins the drain.
type drainKey struct{}

// Serve answers on ln until ctx is done, and then lets requests finish for up to
// thirty seconds. It closes ln. What is cut off then ends in an error at the app.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	base, cut := context.WithCancelCause(context.WithValue(context.Background(), drainKey{}, ctx))
	defer cut(errStopping)
	unused := &newConns{conns: map[net.Conn]bool{}}
	srv := &http.Server{
		Handler:           s,
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnState:         unused.note,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          log.New(io.Discard, "", 0), // it would have addresses of clients in it
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	defer time.AfterFunc(lastBytes, unused.close).Stop()
	defer time.AfterFunc(drainTime, func() { cut(errStopping) }).Stop()
	drain, cancel := context.WithTimeout(context.Background(), drainTime+cutTime)
	defer cancel()
	if srv.Shutdown(drain) != nil {
		srv.Close()
	}
	<-done
	return nil
}

// isCut reports whether the request was ended because the server stops.
func isCut(r *http.Request) bool { return context.Cause(r.Context()) == error(errStopping) }

// receive reads the body of a request. While the server stops it does not wait
// long for what is missing.
func receive(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Time{})
	draining, _ := r.Context().Value(drainKey{}).(context.Context)
	if draining == nil {
		return readBody(r)
	}
	set := make(chan struct{})
	stop := context.AfterFunc(draining, func() {
		defer close(set)
		rc.SetReadDeadline(time.Now().Add(lastBytes))
	})
	body, err := readBody(r)
	if stop() {
		return body, err
	}
	<-set
	// Past the body a deadline would end the request.
	rc.SetReadDeadline(time.Time{})
	if e := (*Error)(nil); err != nil && !(errors.As(err, &e) && e.Code == "request_too_large") {
		err = errStopping
	}
	return body, err
}

// newConns are the connections on which no request has come yet. http.Server waits
// for them, as they might be about to bring one.
type newConns struct {
	mu     sync.Mutex // guards what follows
	conns  map[net.Conn]bool
	closed bool
}

func (n *newConns) note(c net.Conn, state http.ConnState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case state != http.StateNew:
		delete(n.conns, c)
	case n.closed:
		c.Close()
	default:
		n.conns[c] = true
	}
}

func (n *newConns) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	for c := range n.conns {
		c.Close()
	}
}
