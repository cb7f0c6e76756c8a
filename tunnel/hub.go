package tunnel

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// retireTime is how long the exchanges of a replaced connection may go on.
const retireTime = 10 * time.Minute

// Hub is the relay's set of tunnels, an http.RoundTripper that sends a request
// to the node whose id is req.URL.Host. Its zero value is ready; its methods
// may be called concurrently.
type Hub struct {
	mu       sync.Mutex // guards the fields below
	nodes    map[string]tunnels
	draining bool
	retiring sync.WaitGroup // not Add-ed to once draining
}

// tunnels are the connections of one node: the newest, and the one before it
// while its exchanges run.
type tunnels struct{ conn, old *Conn }

// Attach makes c the tunnel of node id. An earlier one is drained: it gets no
// more exchanges, its running ones finish, and it cannot be attached again.
func (h *Hub) Attach(id string, c *Conn) {
	if extra := h.attach(id, c); extra != nil {
		extra.Close()
	}
}

// attach returns the connection that there is no place for.
func (h *Hub) attach(id string, c *Conn) *Conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.nodes[id]
	switch {
	case h.draining:
		return c
	case t.conn == c || c.isDraining():
		return nil
	case t.conn == nil:
		h.set(id, tunnels{conn: c, old: t.old})
		return nil
	}
	h.set(id, tunnels{conn: c, old: t.conn})
	t.conn.refuse()
	h.retiring.Go(func() { h.retire(id, t.conn) })
	return t.old // two are enough: who reconnects in a loop keeps nothing
}

// retire drains a replaced connection and forgets it.
func (h *Hub) retire(id string, old *Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), retireTime)
	defer cancel()
	old.drain(ctx, "/drain?replaced")
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.nodes[id]; t.old == old {
		h.set(id, tunnels{conn: t.conn})
	}
}

// set replaces what is known of a node; h.mu is held.
func (h *Hub) set(id string, t tunnels) {
	if h.nodes == nil {
		h.nodes = map[string]tunnels{}
	}
	if h.nodes[id] = t; t == (tunnels{}) {
		delete(h.nodes, id)
	}
}

// Detach forgets c, which has ended or is about to, unless a newer connection
// has taken its place. It does not close c.
func (h *Hub) Detach(id string, c *Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.nodes[id]; t.conn == c {
		h.set(id, tunnels{old: t.old})
	}
}

// Conn returns the tunnel of a node, or nil.
func (h *Hub) Conn(id string) *Conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.nodes[id].conn
}

// RoundTrip sends req to the node req.URL.Host, see [Conn.RoundTrip]. The error
// is ErrUnavailable, at once and with nothing sent, if that node cannot take it.
func (h *Hub) RoundTrip(req *http.Request) (*http.Response, error) {
	c := h.Conn(req.URL.Host)
	if c == nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, ErrUnavailable
	}
	return c.RoundTrip(req)
}

// Drain asks every node to drain and returns when all connections have ended,
// or closes those that are left when ctx is done and returns its error.
// Connections attached from now on are closed.
func (h *Hub) Drain(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, c := range h.close() {
		wg.Go(func() { c.Drain(ctx) })
	}
	wg.Wait()
	h.retiring.Wait()
	return ctx.Err()
}

// Close ends every connection at once.
func (h *Hub) Close() error {
	for _, c := range h.close() {
		c.Close()
	}
	h.retiring.Wait()
	return nil
}

// close takes no more connections and returns those there are.
func (h *Hub) close() []*Conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining = true
	var all []*Conn
	for _, t := range h.nodes {
		for _, c := range []*Conn{t.conn, t.old} {
			if c != nil {
				all = append(all, c)
			}
		}
	}
	return all
}
