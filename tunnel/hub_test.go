package tunnel_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"token.place/tunnel"
)

// to is a request for a node.
func to(id string) *http.Request {
	req := post(strings.NewReader("hello"))
	req.URL.Host = id
	return req
}

func named(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, name) }
}

func TestHub(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var hub tunnel.Hub
		defer hub.Close()
		a, b := dial(t, named("a"), tunnel.ServeConfig{}), dial(t, named("b"), tunnel.ServeConfig{})
		hub.Attach("node-a", a.Conn)
		hub.Attach("node-b", b.Conn)
		for id, want := range map[string]string{"node-a": "a", "node-b": "b"} {
			if got := read(t, send(t, &hub, to(id))); got != want {
				t.Errorf("%s answered %q", id, got)
			}
		}
		body := &closing{Reader: strings.NewReader("x")}
		req := to("node-c")
		req.Body = body
		if _, err := hub.RoundTrip(req); err != tunnel.ErrUnavailable || !body.closed {
			t.Errorf("an unknown node: %v, body closed: %v", err, body.closed)
		}
		hub.Detach("node-a", b.Conn) // not its connection
		if hub.Conn("node-a") != a.Conn {
			t.Error("a connection was detached in another's name")
		}
		hub.Detach("node-a", a.Conn)
		if _, err := hub.RoundTrip(to("node-a")); err != tunnel.ErrUnavailable {
			t.Errorf("a detached node: %v", err)
		}
	})
}

// A dead node is unavailable from the moment its connection is, before anybody
// detaches it.
func TestHubDeadNode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var hub tunnel.Hub
		defer hub.Close()
		l := dial(t, named("a"), tunnel.ServeConfig{})
		hub.Attach("node", l.Conn)
		l.node.Close()
		<-l.Done()
		if _, err := hub.RoundTrip(to("node")); err != tunnel.ErrUnavailable {
			t.Error(err)
		}
	})
}

// The newest connection of a node wins; what runs on the older one finishes,
// and its Serve knows why it was drained.
func TestNewestWins(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var hub tunnel.Hub
		release := make(chan struct{})
		older, newer := dial(t, hold(release), tunnel.ServeConfig{}), dial(t, named("newer"), tunnel.ServeConfig{})
		hub.Attach("node", older.Conn)
		running := send(t, &hub, to("node"))
		hub.Attach("node", newer.Conn)
		hub.Attach("node", newer.Conn) // no change
		hub.Attach("node", older.Conn) // its turn is over
		hub.Detach("node", older.Conn) // as its owner does when it ends
		synctest.Wait()
		if got := read(t, send(t, &hub, to("node"))); got != "newer" {
			t.Errorf("%q answered", got)
		}
		close(release)
		if got := read(t, running); got != "az" {
			t.Errorf("the running exchange got %q", got)
		}
		if err := <-older.served; err != tunnel.ErrReplaced {
			t.Errorf("the older Serve returned %v", err)
		}
		hub.Close()
		<-newer.Done()
	})
}

// Somebody who reconnects in a loop, and never drains, holds two connections.
func TestReplacedTwice(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var hub tunnel.Hub
		defer hub.Close()
		links := make([]*link, 3)
		for i := range links {
			links[i] = dial(t, hold(nil), tunnel.ServeConfig{Drain: time.Hour})
			hub.Attach("node", links[i].Conn)
			send(t, &hub, to("node"))
		}
		<-links[0].Done()
		select {
		case <-links[1].Done():
			t.Error("the one before was closed too")
		default:
		}
		time.Sleep(11 * time.Minute)
		<-links[1].Done()
		if hub.Conn("node") != links[2].Conn {
			t.Error("the newest was lost")
		}
	})
}

func TestHubDrain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var hub tunnel.Hub
		release := make(chan struct{})
		idle, busy, stuck := dial(t, named("idle"), tunnel.ServeConfig{}), dial(t, hold(release), tunnel.ServeConfig{}), dial(t, hold(nil), tunnel.ServeConfig{})
		hub.Attach("idle", idle.Conn)
		hub.Attach("busy", busy.Conn)
		hub.Attach("stuck", stuck.Conn)
		running := send(t, &hub, to("busy"))
		send(t, &hub, to("stuck"))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		drained := make(chan error, 1)
		go func() { drained <- hub.Drain(ctx) }()
		time.Sleep(2 * time.Second)
		<-idle.Done()
		late := dial(t, named("late"), tunnel.ServeConfig{})
		hub.Attach("late", late.Conn)
		<-late.Done()
		if _, err := hub.RoundTrip(to("busy")); err != tunnel.ErrUnavailable {
			t.Errorf("a new exchange got %v", err)
		}
		close(release)
		if got := read(t, running); got != "az" {
			t.Errorf("got %q", got)
		}
		if err := <-drained; err == nil {
			t.Error("Drain did not say that a node was left")
		}
		for _, l := range []*link{idle, busy, stuck} {
			if err := <-l.served; err != tunnel.ErrDrained {
				t.Errorf("Serve returned %v", err)
			}
		}
		hub.Close()
	})
}
