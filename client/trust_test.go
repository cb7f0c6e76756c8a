package client_test

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"token.place/client"
	"token.place/identity"
	"token.place/ohttp"
)

// Each relay here lists a node that must not be used. None may be sealed to.
func TestWhatCannotBeVerifiedIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		good, other := newNode(t, says("ok"), "m"), newNode(t, says("ok"), "m")
		now := time.Now()
		describe := func(from, to time.Duration, keys []byte) identity.Bundle {
			return good.sign(identity.Descriptor{NotBefore: now.Add(from), NotAfter: now.Add(to), Keys: keys, Models: good.models, Capacity: 1})
		}
		configs, err := ohttp.ParseKeyConfigs(good.keys.Public())
		if err != nil {
			t.Fatal(err)
		}
		var weak []ohttp.KeyConfig
		for _, c := range configs {
			if c.KEM != ohttp.XWing {
				weak = append(weak, c)
			}
		}
		onlyX25519, err := ohttp.MarshalKeyConfigs(weak)
		if err != nil {
			t.Fatal(err)
		}
		forged := good.bundle()
		forged.Descriptor = strings.Replace(forged.Descriptor, `"capacity":8`, `"capacity":9`, 1)
		for name, c := range map[string]struct {
			entry any
			says  string
		}{
			"not pinned":            {other.entry(other.bundle()), "pin it with --node"},
			"another under a name":  {good.entry(other.bundle()), "pin it with --node"},
			"forged":                {good.entry(forged), "not signed by the node"},
			"keys of another":       {good.entry(identity.Bundle{Key: good.bundle().Key, Descriptor: other.bundle().Descriptor}), "not signed"},
			"expired":               {good.entry(describe(-2*time.Hour, -time.Hour, good.keys.Public())), "check the clocks"},
			"from the future":       {good.entry(describe(time.Hour, 2*time.Hour, good.keys.Public())), "check the clocks"},
			"without X-Wing":        {good.entry(describe(0, time.Hour, onlyX25519)), "ML-KEM-768+X25519"},
			"keys that are none":    {good.entry(describe(0, time.Hour, []byte{0, 1, 7})), "ML-KEM-768+X25519"},
			"no bundle":             {map[string]any{"id": good.id}, "not signed"},
			"bundle of other types": {map[string]any{"id": good.id, "bundle": []int{1}}, "malformed"},
			"not an object":         {"x", "malformed"},
		} {
			net := newNetwork(t)
			r := net.relay("relay.test", good)
			r.directory = func(w http.ResponseWriter, _ *http.Request) { writeNodes(w, c.entry) }
			tr := net.client(client.Config{Trust: pins(good)}, r)
			e := refused(t, tr, chat)
			if e.Status != 503 || e.Code != "no_node" || !strings.Contains(e.Message, c.says) {
				t.Errorf("%s: %d %s %s", name, e.Status, e.Code, e.Message)
			}
			if _, exchanges := r.counts(); exchanges != 0 {
				t.Errorf("%s: something was sealed", name)
			}
			nodes, err := tr.Nodes(t.Context())
			if err != nil || len(nodes) != 1 || !strings.Contains(nodes[0].Refused, c.says) {
				t.Errorf("%s: nodes: %+v, %v", name, nodes, err)
			}
		}
	})
}

func TestNothingPinned(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := newNode(t, says("ok"), "m"), newNode(t, says("ok"), "m")
		net := newNetwork(t)
		r := net.relay("relay.test", a, b)
		tr := net.client(client.Config{}, r)
		if e := refused(t, tr, chat); !strings.Contains(e.Message, "2 are refused, for each it is not pinned: pin it with --node ID") {
			t.Error(e.Message)
		}
		empty := net.client(client.Config{}, net.relay("empty.test"))
		if e := refused(t, empty, chat); !strings.Contains(e.Message, "pin a node with --node ID") {
			t.Error(e.Message)
		}
		away := net.client(client.Config{Trust: pins(a, b)}, net.relay("away.test"))
		if e := refused(t, away, chat); !strings.Contains(e.Message, "2 pinned, none there. Start") {
			t.Error(e.Message)
		}
		nodes, err := tr.Nodes(t.Context())
		if err != nil || len(nodes) != 2 || nodes[0].ID > nodes[1].ID {
			t.Errorf("nodes: %+v, %v", nodes, err)
		}
		for _, n := range nodes { // enough to decide what to pin
			if len(n.Models) != 1 || n.Models[0].ID != "m" || n.Capacity != 8 || n.Refused == "" {
				t.Errorf("node: %+v", n)
			}
		}
	})
}

func TestARelayThatIsAnother(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNode(t, says("ok"), "m")
		net := newNetwork(t)
		r := net.relay("relay.test", n)
		r.relay.ID = n.id
		tr := net.client(client.Config{Trust: pins(n)}, r)
		if e := refused(t, tr, chat); e.Code != "relay_unreachable" || !strings.Contains(e.Message, "another identity") {
			t.Error(e.Code, e.Message)
		}
		unpinned := net.relay("web.test", n)
		unpinned.relay.ID = ""
		tr = net.client(client.Config{Trust: pins(n)}, unpinned)
		if e := refused(t, tr, chat); e.Code != "relay_unreachable" {
			t.Error(e.Code, e.Message)
		}
	})
}

func TestPinnedNodesAreAskedFor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		n := newNode(t, says("ok"), "m")
		r := net.relay("relay.test", n)
		few := net.client(client.Config{Trust: pins(n)}, r)
		ask(t, few, chat)
		if r.queries[0] != "id="+string(n.id) {
			t.Errorf("queries %q", r.queries)
		}
		many := pins(n, n)
		for range 249 {
			cred, err := identity.NewCredential()
			if err != nil {
				t.Fatal(err)
			}
			many.Nodes = append(many.Nodes, cred.ID())
		}
		ask(t, net.client(client.Config{Trust: many}, r), chat)
		asked := map[string]bool{}
		for i, query := range r.queries[1:] {
			q, err := url.ParseQuery(query)
			if want := []int{100, 100, 50}[i]; err != nil || len(q) != 1 || len(q["id"]) != want {
				t.Errorf("query %d has %d ids, want %d, %v", i, len(q["id"]), want, err)
			}
			for _, id := range q["id"] {
				asked[id] = true
			}
		}
		if len(asked) != 250 || !asked[string(n.id)] {
			t.Errorf("%d of 250 were asked for", len(asked))
		}
	})
}

// Nodes that crowd a directory hide themselves from those who pin, and show what
// came before them to those who do not.
func TestCrowdedDirectories(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		n := newNode(t, says("ok"), "m")
		r := net.relay("relay.test", n)
		bundle := n.bundle()
		r.directory = func(w http.ResponseWriter, req *http.Request) {
			entries := []any{n.entry(bundle)}
			for len(entries) <= client.MaxNodes && req.URL.RawQuery == "" {
				entries = append(entries, map[string]any{"id": "x"})
			}
			writeNodes(w, entries...)
		}
		if status, _ := ask(t, net.client(client.Config{Trust: pins(n)}, r), chat); status != 200 {
			t.Errorf("status %d", status)
		}
		nodes, err := net.client(client.Config{}, r).Nodes(t.Context())
		if err != nil || len(nodes) != client.MaxNodes+1 {
			t.Fatalf("%d nodes, %v", len(nodes), err)
		}
		found, told := false, false
		for _, got := range nodes {
			found = found || got.ID == n.id && len(got.Models) == 1
			told = told || strings.Contains(got.Refused, "more than 20000 nodes") && got.Relay == "https://relay.test"
		}
		if !found || !told {
			t.Errorf("what came is there: %v; that it is cut is said: %v", found, told)
		}
	})
}

// What a relay says instead of a directory costs bounded memory and time.
func TestGarbageForADirectory(t *testing.T) {
	text := func(contentType, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			io.WriteString(w, body)
		}
	}
	endless := func(before, again string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, before)
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, strings.Repeat(again, 1000)); err != nil {
					return
				}
			}
		}
	}
	for name, c := range map[string]struct {
		directory http.HandlerFunc
		code      string
		says      string
	}{
		"HTML":           {text("text/html", "<h1>LIES</h1>"), "relay_error", "check that the URL"},
		"status 404":     {http.NotFound, "relay_error", "status 404"},
		"status 429":     {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Retry-After", "7"); w.WriteHeader(429) }, "relay_busy", "try again later"},
		"a redirect":     {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "https://evil.test/", 307) }, "relay_error", "status 307"},
		"not JSON":       {text("application/json", "LIES"), "relay_error", "malformed"},
		"an array":       {text("application/json", "[]"), "relay_error", "malformed"},
		"no nodes":       {text("application/json", "{}"), "relay_error", "malformed"},
		"nodes of null":  {text("application/json", `{"nodes":null}`), "relay_error", "malformed"},
		"cut off":        {text("application/json", `{"nodes":[{"id"`), "relay_error", "malformed"},
		"more after":     {text("application/json", `{"nodes":[]}{}`), "relay_error", "follows"},
		"twice":          {text("application/json", `{"nodes":[],"nodes":[]}`), "relay_error", "twice"},
		"deep":           {text("application/json", `{"x":`+strings.Repeat("[", 20_000)), "relay_error", "malformed"},
		"too many nodes": {endless(`{"nodes":[{}`, ",{}"), "relay_error", "more than 20000"},
		"endless":        {endless(`{"nodes":[{"id":"`, "x"), "relay_error", "an entry is larger than 256 KiB"},
		"endless field":  {endless(`{"x":"`, "x"), "relay_error", "an entry is larger than 256 KiB"},
		"endless space":  {endless(`{"nodes":[`, " "), "relay_error", "an entry is larger than 256 KiB"},
		"dripping": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			for r.Context().Err() == nil {
				io.WriteString(w, " ")
				http.NewResponseController(w).Flush()
				select {
				case <-time.After(time.Second):
				case <-r.Context().Done():
				}
			}
		}, "relay_unreachable", "in time"},
		"broken": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"nodes":[`)
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, "relay_unreachable", "the connection failed"},
		"hanging": {func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "relay_unreachable", "in time"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				net := newNetwork(t)
				n := newNode(t, says("ok"), "m")
				r := net.relay("relay.test", n)
				r.directory = c.directory
				tr := net.client(client.Config{Trust: pins(n)}, r)
				start := time.Now()
				e := refused(t, tr, chat)
				if e.Code != c.code || !strings.Contains(e.Message, c.says) || e.Status < 500 {
					t.Errorf("%d %s %s", e.Status, e.Code, e.Message)
				}
				if d := time.Since(start); d > 31*time.Second {
					t.Errorf("it took %v", d)
				}
				if name == "status 429" && e.RetryAfter != 7*time.Second {
					t.Errorf("retry after %v", e.RetryAfter)
				}
			})
		})
	}
}

func TestTheWholeDirectoryIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("it reads 64 MiB")
	}
	one := `{"id":"` + strings.Repeat("x", 200<<10) + `"},`
	r, w := io.Pipe()
	go func() {
		_, err := io.WriteString(w, `{"nodes":[`)
		for err == nil {
			_, err = io.WriteString(w, one)
		}
	}()
	good, _, err := client.ReadDirectory(r)
	r.Close()
	if err == nil || !strings.Contains(err.Error(), "larger than 64 MiB") || good > 330 {
		t.Errorf("%d entries, %v", good, err)
	}
}

// A directory that cannot be had any more is used for as long as its
// descriptors hold.
func TestStaleDirectory(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		n := newNode(t, says("ok"), "m")
		r := net.relay("relay.test", n)
		tr := net.client(client.Config{Trust: pins(n)}, r)
		ask(t, tr, chat)
		r.with(func() { r.directory = http.NotFound })
		for range 5 {
			time.Sleep(11 * time.Minute)
			if status, _ := ask(t, tr, chat); status != 200 {
				t.Fatalf("status %d", status)
			}
		}
		time.Sleep(11 * time.Minute)
		if e := refused(t, tr, chat); e.Status != 502 || e.Code != "relay_error" {
			t.Errorf("%d %s %s", e.Status, e.Code, e.Message)
		}
		r.with(func() { r.directory = nil; n.rekey(t, says("ok")) })
		time.Sleep(2 * time.Second)
		if status, _ := ask(t, tr, chat); status != 200 {
			t.Errorf("status %d once the directory is back", status)
		}
	})
}

func TestDirectoryIsFetchedOnceForAll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		n := newNode(t, says("ok"), "m")
		r := net.relay("relay.test", n)
		tr := net.client(client.Config{Trust: pins(n)}, r)
		done := make(chan int)
		for range 20 {
			go func() { status, _ := ask(t, tr, chat); done <- status }()
		}
		for range 20 {
			if status := <-done; status != 200 {
				t.Errorf("status %d", status)
			}
		}
		if fetches, _ := r.counts(); fetches != 1 {
			t.Errorf("%d fetches", fetches)
		}
		time.Sleep(4 * time.Second)
		ask(t, tr, chat) // which need not wait for the fetch that it begins
		synctest.Wait()
		tr.Close()
		if fetches, _ := r.counts(); fetches != 2 {
			t.Errorf("%d fetches after 4 s", fetches)
		}
	})
}

func FuzzDirectory(f *testing.F) {
	for _, s := range []string{`{"nodes":[]}`, `{"nodes":[{"id":"x","bundle":{"key":"k","descriptor":"d"},"load":{"in_flight":1,"capacity":2}}]}`,
		`{"nodes":[1,{},null,[]]}`, `{"a":{},"nodes":[{"id":1}],"b":[]} `, `{"nodes":[{"load":{"in_flight":-1e99}}]}`, "", "{", `{"nodes":[]}x`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		good, bad, err := client.ReadDirectory(strings.NewReader(s))
		if good+bad > client.MaxNodes || good+bad > len(s) {
			t.Errorf("%d entries", good+bad)
		}
		if err != nil && len(fmt.Sprint(err)) > 200 {
			t.Errorf("a long error: %v", err)
		}
	})
}
