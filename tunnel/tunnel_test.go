package tunnel_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"token.place/internal/memnet"
	"token.place/tunnel"
)

// link is a tunnel in memory: a served node and the relay's end.
type link struct {
	*tunnel.Conn
	relay, node net.Conn // the raw ends
	stop        context.CancelFunc
	served      chan error // what Serve returned
}

func dial(t testing.TB, h http.Handler, cfg tunnel.ServeConfig) *link {
	t.Helper()
	a, b := memnet.Pipe()
	return dialOn(t, a, b, h, cfg, tunnel.Config{})
}

func dialOn(t testing.TB, relay, node net.Conn, h http.Handler, cfg tunnel.ServeConfig, rc tunnel.Config) *link {
	t.Helper()
	if cfg.Capacity == 0 {
		cfg.Capacity = 10
	}
	ctx, stop := context.WithCancel(context.Background())
	l := &link{relay: relay, node: node, stop: stop, served: make(chan error, 1)}
	go func() { l.served <- tunnel.Serve(ctx, node, h, cfg) }()
	c, err := tunnel.Open(context.Background(), relay, rc)
	if err != nil {
		t.Fatal(err)
	}
	l.Conn = c
	t.Cleanup(func() { c.Close(); stop() })
	return l
}

func post(t testing.TB, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequest("POST", "http://node/exchange", body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func echo(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }

func TestExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := dial(t, http.HandlerFunc(echo), tunnel.ServeConfig{Capacity: 3})
		res, err := l.RoundTrip(post(t, strings.NewReader("hello")))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if string(b) != "hello" || err != nil {
			t.Errorf("got %q, %v", b, err)
		}
		if l.Capacity() != 3 {
			t.Errorf("capacity %d", l.Capacity())
		}
	})
}
