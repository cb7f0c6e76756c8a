package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdnet "net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"token.place/client"
	"token.place/identity"
)

func TestNodesAndModels(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		a, b, stranger := newNode(t, says("ok"), "m", "only-a"), newNode(t, says("ok"), "m"), newNode(t, says("ok"), "x")
		b.models[0].ContextLength = 512
		a.inFlight = 3
		r := net.relay("relay.test", a, b, stranger)
		r.directory = func(w http.ResponseWriter, _ *http.Request) { // all, whatever is asked for
			writeNodes(w, a.entry(a.bundle()), b.entry(b.bundle()), stranger.entry(stranger.bundle()))
		}
		trust := pins(a, b)
		tr := net.client(client.Config{Trust: trust}, r)
		models, err := tr.Models(t.Context())
		if want := []client.Model{{"m", "", 512, 2}, {"only-a", "", 4096, 1}}; err != nil || !slices.Equal(models, want) {
			t.Errorf("models %+v, %v; want %+v", models, err, want)
		}
		nodes, err := tr.Nodes(t.Context())
		if err != nil || len(nodes) != 3 {
			t.Fatalf("nodes %+v, %v", nodes, err)
		}
		for _, n := range nodes {
			switch {
			case n.Relay != "https://relay.test":
				t.Errorf("%+v", n)
			case n.ID == stranger.id && (!strings.Contains(n.Refused, "not pinned") || n.Models != nil):
				t.Errorf("%+v", n)
			case n.ID == a.id && (n.Refused != "" || len(n.Models) != 2 || n.InFlight != 3 || n.Capacity != 8 || n.NotAfter.IsZero()):
				t.Errorf("%+v", n)
			}
		}
		r.srv.Close()
		time.Sleep(time.Minute)
		if nodes, err = tr.Nodes(t.Context()); err != nil || len(nodes) != 3 || nodes[0].Refused+nodes[1].Refused+nodes[2].Refused == "" {
			t.Errorf("nodes without the relay: %+v, %v", nodes, err)
		}
		var e *client.Error
		cold := net.client(client.Config{Trust: trust}, r)
		if _, err := cold.Nodes(t.Context()); !errors.As(err, &e) || e.Code != "relay_unreachable" {
			t.Errorf("nodes of no relay: %v", err)
		}
		if _, err := cold.Models(t.Context()); !errors.As(err, &e) || e.Code != "relay_unreachable" {
			t.Errorf("models of no relay: %v", err)
		}
		tr.Close()
		if _, err := tr.Nodes(t.Context()); !errors.As(err, &e) || e.Code != "closed" {
			t.Errorf("nodes after Close: %v", err)
		}
	})
}

func TestUnmetAliases(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		n := newNode(t, says("ok"), "m")
		tr := net.client(client.Config{Trust: pins(n), Aliases: map[string]string{"good": "m", "b": "typo", "a": "gone", "m2": "m"}}, net.relay("relay.test", n))
		models, err := tr.Models(t.Context())
		if got, want := tr.Unmet(models), []client.Model{{ID: "a", AliasOf: "gone"}, {ID: "b", AliasOf: "typo"}}; err != nil || !slices.Equal(got, want) {
			t.Errorf("unmet %+v, %v", got, err)
		}
	})
}

// A relay may hold on to a node's last descriptor: the newest that any relay has
// counts.
func TestTheNewestDescriptorCounts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		n, other := newNode(t, says("old"), "m"), newNode(t, says("other"), "x")
		old := n.bundle()
		time.Sleep(10 * time.Minute)
		n.rekey(t, says("new"))
		for i, order := range [][2]identity.Bundle{{old, n.bundle()}, {n.bundle(), old}} {
			a, b := net.relay(fmt.Sprintf("a%d.test", i), n, other), net.relay(fmt.Sprintf("b%d.test", i), n, other)
			for j, r := range []*stubRelay{a, b} {
				r.directory = func(w http.ResponseWriter, _ *http.Request) {
					e := n.entry(order[j])
					e["load"] = map[string]int{"in_flight": 2 * j, "capacity": 4}
					writeNodes(w, e)
				}
			}
			tr := net.client(client.Config{Trust: pins(n, other)}, a, b)
			if _, err := tr.Models(t.Context()); err != nil {
				t.Fatal(err)
			}
			for range 20 {
				if _, answer := ask(t, tr, chat); answer != "new" {
					t.Errorf("got %s", answer)
				}
			}
			_, viaA := a.counts()
			_, viaB := b.counts()
			if viaA+viaB != 20 || viaA < 2 || viaB < 2 {
				t.Errorf("%d + %d exchanges, want 20 over both relays", viaA, viaB)
			}
		}
	})
}

func TestAttemptsEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		var nodes []*stubNode
		for range 20 {
			nodes = append(nodes, newNode(t, abort, "m"))
		}
		r := net.relay("relay.test", nodes...)
		r.exchange = func(w http.ResponseWriter, r *http.Request, _ *stubNode) bool {
			problem(w, 502, "https://token.place/problems/node-failed")
			return true
		}
		tr := net.client(client.Config{Trust: pins(nodes...)}, r)
		if e := refused(t, tr, chat); e.Code != "node_lost" || e.Status != 502 {
			t.Errorf("%d %s %s", e.Status, e.Code, e.Message)
		}
		if _, exchanges := r.counts(); exchanges != client.MaxAttempts {
			t.Errorf("%d exchanges", exchanges)
		}
	})
}

// Every way in which a relay cannot be reached has its own advice, and none of
// the addresses that errors of the network have in them.
func TestUnreachableRelays(t *testing.T) {
	for want, dialErr := range map[string]error{
		"its name is not known":     &stdnet.DNSError{Err: "no such host SECRET", Name: "relay.test", IsNotFound: true},
		"the connection is refused": &stdnet.OpError{Op: "dial", Net: "tcp", Source: &stdnet.TCPAddr{IP: stdnet.IPv4(198, 51, 100, 7)}, Err: syscall.ECONNREFUSED},
		"does not answer in time":   context.DeadlineExceeded,
		"the connection failed":     errors.New("SECRET"),
		"no certificate authority":  nil,
	} {
		bubble(t, func(t *testing.T) {
			net := newNetwork(t)
			n := newNode(t, says("ok"), "m")
			r := net.relay("relay.test", n)
			r.relay.ID = ""
			tr, err := client.New(client.Config{Relays: []identity.Relay{r.relay}, Trust: pins(n), Dial: func(ctx context.Context, network, addr string) (stdnet.Conn, error) {
				if dialErr != nil {
					return nil, dialErr
				}
				return net.net.Dial(ctx, network, addr)
			}})
			if err != nil {
				t.Fatal(err)
			}
			defer tr.Close()
			e := refused(t, tr, chat)
			if e.Status != 502 || e.Code != "relay_unreachable" || !strings.Contains(e.Message, want) || !strings.Contains(e.Message, "relay.test") || strings.Contains(e.Message, "198.51") {
				t.Errorf("want %q, got %d %s %s", want, e.Status, e.Code, e.Message)
			}
		})
	}
}

func TestRequestBodiesThatEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		n := newNode(t, says("ok"), "m")
		tr := net.client(client.Config{Trust: pins(n)}, net.relay("relay.test", n))
		r, w := io.Pipe()
		w.CloseWithError(errors.New("SECRET"))
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://x/v1/embeddings", r)
		var e *client.Error
		if _, err := tr.RoundTrip(req); !errors.As(err, &e) || e.Code != "incomplete_request" || strings.Contains(e.Message, "SECRET") {
			t.Errorf("got %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		req, _ = http.NewRequestWithContext(ctx, "POST", "https://x/v1/embeddings", r)
		if _, err := tr.RoundTrip(req); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		req, _ = http.NewRequestWithContext(t.Context(), "POST", "https://x/v1/embeddings", http.NoBody)
		req.ContentLength = client.MaxBody + 1
		req.Body = io.NopCloser(strings.NewReader(""))
		if _, err := tr.RoundTrip(req); !errors.As(err, &e) || e.Code != "request_too_large" {
			t.Errorf("got %v", err)
		}
	})
}
