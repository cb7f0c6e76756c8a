package client_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"token.place/client"
	"token.place/identity"
)

// BenchmarkRoundTrip is the whole path of a client, with a relay and a node in
// the same process: TLS, HTTP/2, sealing at both ends.
func BenchmarkRoundTrip(b *testing.B) {
	net := newNetwork(b)
	n := newNode(b, says(strings.Repeat("x", 2000)), "m")
	tr := net.client(client.Config{Trust: pins(n)}, net.relay("relay.test", n))
	body := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("x", 3000) + `"}]}`
	ask(b, tr, body)
	b.ReportAllocs()
	for b.Loop() {
		ask(b, tr, body)
	}
}

// BenchmarkServerStream is an event through the local server, from a node's
// sealed chunk to an app's connection.
func BenchmarkServerStream(b *testing.B) {
	net := newNetwork(b)
	n := newNode(b, streams(func(w http.ResponseWriter, r *http.Request) {
		for i := 0; i < b.N; i++ {
			event(w, `{"choices":[{"delta":{"content":"word"}}]}`)
		}
	}), "m")
	app := net.local(client.ServerConfig{Transport: net.client(client.Config{Trust: pins(n)}, net.relay("relay.test", n))})
	b.ReportAllocs()
	b.ResetTimer()
	resp, err := app.do("POST", completions, chatStream)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkDirectory is a refresh with a thousand pinned nodes that are all known
// already, and the choice of one.
func BenchmarkDirectory(b *testing.B) {
	var nodes []*stubNode
	for range 1000 {
		nodes = append(nodes, newNode(b, says("ok"), "m"))
	}
	net := newNetwork(b)
	r := net.relay("relay.test", nodes...)
	tr := net.client(client.Config{Trust: pins(nodes...)}, r)
	ask(b, tr, chat)
	var list []any
	for _, n := range nodes {
		list = append(list, n.entry(r.bundle(n)))
	}
	made := httptest.NewRecorder()
	writeNodes(made, list...)
	r.directory = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(made.Body.Bytes())
	}
	b.Run("refresh", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			client.Refresh(tr)
		}
	})
	b.Run("choose", func(b *testing.B) {
		b.ReportAllocs()
		used := map[identity.ID]bool{}
		for i := 0; b.Loop(); i++ {
			used[client.Choose(tr, "m", fmt.Sprint(i))] = true
		}
	})
}
