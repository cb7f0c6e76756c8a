package relay_test

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"token.place/identity"
	"token.place/relay"
)

func TestRoutes(t *testing.T) {
	for _, proto := range both {
		t.Run(proto, func(t *testing.T) {
			test(t, relay.Config{}, func(w *world) {
				n := w.join(chunked("answer"))
				c := w.client(proto)
				for _, tc := range []struct {
					method, path string
					status       int
					want         string // content type, or slug
				}{
					{"GET", "/healthz", 200, "text/plain; charset=utf-8"},
					{"HEAD", "/healthz", 200, "text/plain; charset=utf-8"},
					{"GET", "/readyz", 200, "text/plain; charset=utf-8"},
					{"GET", "/v1/nodes", 200, "application/json"},
					{"HEAD", "/v1/nodes", 200, "application/json"},
					{"GET", "/v1/models", 200, "application/json"},
					{"GET", "/v1/nodes/" + string(n.ID()) + "/ohttp-keys", 200, "application/ohttp-keys"},
					{"GET", "/v1/nodes/" + string(credential(w).ID()) + "/ohttp-keys", 503, "node-unavailable"},
					{"GET", "/v1/nodes/x/ohttp-keys", 404, "not-found"},
					{"GET", "/v1/nodes/" + string(n.ID()), 404, "not-found"},
					{"GET", "/v1/nodes/", 404, "not-found"},
					{"GET", "/", 404, "not-found"},
					{"GET", "/v1", 404, "not-found"},
					{"GET", "/v1/nodes?id=x", 400, "bad-query"},
					{"GET", "/v1/nodes?model=a&model=b", 400, "bad-query"},
					{"GET", "/v1/nodes?%zz", 400, "bad-query"},
					{"GET", "/v1/nodes?" + strings.Repeat("id="+string(n.ID())+"&", 101), 400, "bad-query"},
					{"POST", "/v1/nodes", 405, "method-not-allowed"},
					{"OPTIONS", "/v1/nodes", 405, "method-not-allowed"},
					{"DELETE", "/healthz", 405, "method-not-allowed"},
					{"POST", "/anything", 404, "not-found"},
					{"REFUSED", "/3", 400, "malformed-request"},
					{"REFUSED", "/300", 400, "malformed-request"},
				} {
					var body io.Reader
					if tc.method == "POST" {
						body = repeat(100)
					}
					res, got := w.do(c, tc.method, tc.path, nil, body)
					switch {
					case tc.status == 200 && (res.StatusCode != 200 || res.Header.Get("Content-Type") != tc.want || tc.method == "HEAD" != (got == "")):
						w.Errorf("%s %s: %d %v %q", tc.method, tc.path, res.StatusCode, res.Header, got)
					case tc.status == 405 && res.Header.Get("Allow") != "GET, HEAD":
						w.Errorf("%s %s: Allow %q", tc.method, tc.path, res.Header.Get("Allow"))
					case tc.want == "malformed-request" && strings.HasPrefix(tc.path, "/300"): // no detail
					case tc.status != 200:
						w.problem(res, got, tc.status, tc.want)
					}
					for k := range res.Header {
						if strings.HasPrefix(k, "Access-Control") || k == "Server" {
							w.Errorf("%s %s: header %s", tc.method, tc.path, k)
						}
					}
				}
				c.CloseIdleConnections()
				n.close()
			})
		})
	}
}

func TestDirectory(t *testing.T) {
	test(t, relay.Config{}, func(w *world) {
		creds := []*identity.Credential{credential(w), credential(w), credential(w)}
		slices.SortFunc(creds, func(a, b *identity.Credential) int { return strings.Compare(string(b.ID()), string(a.ID())) })
		var nodes []*node
		var ids []string
		models := [][]identity.Model{{{ID: "a"}, {ID: "b", ContextLength: 10}}, {{ID: "b", ContextLength: 30}}, {{ID: "c <&>"}, {ID: "b", ContextLength: 20}}}
		for i, c := range creds {
			n := w.connect(c, 8, chunked("answer"))
			d := descriptor()
			d.Models = models[i]
			n.lines <- bundleLine(w, c, d)
			nodes, ids = append(nodes, n), append([]string{string(c.ID())}, ids...)
		}
		synctest.Wait()
		nodes[1].lines <- `{"load":{"in_flight":3,"capacity":5}}`
		time.Sleep(time.Second)

		res, body := w.get("/v1/nodes")
		var list struct {
			Nodes []struct {
				ID     identity.ID     `json:"id"`
				Bundle identity.Bundle `json:"bundle"`
				Load   struct {
					InFlight int `json:"in_flight"`
					Capacity int `json:"capacity"`
				} `json:"load"`
			} `json:"nodes"`
		}
		dec := json.NewDecoder(strings.NewReader(body))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&list); err != nil || res.Header.Get("Cache-Control") != "no-store" {
			w.Fatalf("%v in %s", err, body)
		}
		for i, n := range list.Nodes {
			id, d, err := identity.Verify(n.Bundle, identity.Trust{Nodes: []identity.ID{n.ID}}, time.Now())
			if err != nil || id != n.ID || string(id) != ids[i] || d.Capacity != 8 {
				w.Errorf("node %d: %s %+v %v", i, id, d, err)
			}
			if want := i == 1; want != (n.Load.InFlight == 3 && n.Load.Capacity == 5) || !want && n.Load.Capacity != 8 {
				w.Errorf("node %d: load %+v", i, n.Load)
			}
		}
		for query, want := range map[string][]string{
			"":                   ids,
			"?model=b":           ids,
			"?model=a":           {ids[2]},
			"?model=c+%3C%26%3E": {ids[0]},
			"?model=d":           {},
			"?model=":            {},
			"?id=" + ids[1]:      {ids[1]},
			"?id=" + ids[2] + "&id=" + ids[0] + "&id=" + ids[2]: {ids[0], ids[2]},
			"?model=a&id=" + ids[1]:                             {},
			"?id=" + string(credential(w).ID()):                 {},
		} {
			if got := w.listed(query); !slices.Equal(got, want) {
				w.Errorf("%s: %v, want %v", query, got, want)
			}
		}
		want := `{"object":"list","data":[` +
			`{"id":"a","object":"model","created":0,"owned_by":"token.place"},` +
			`{"id":"b","object":"model","created":0,"owned_by":"token.place","context_length":30},` +
			`{"id":"c \u003c\u0026\u003e","object":"model","created":0,"owned_by":"token.place"}]}` + "\n"
		if _, body := w.get("/v1/models"); body != want {
			w.Errorf("models: %s", body)
		}
		if _, body := w.get("/v1/nodes/" + ids[0] + "/ohttp-keys"); body != "\x00\x03\x01\x02\x03" {
			w.Errorf("keys: %q", body)
		}
		for _, n := range nodes {
			n.close()
		}
		synctest.Wait()
		if got := w.listed(""); len(got) != 0 {
			w.Errorf("left behind: %v", got)
		}
		time.Sleep(time.Second) // the list of models may be so old
		if _, body := w.get("/v1/models"); body != `{"object":"list","data":[]}`+"\n" {
			w.Errorf("no models: %s", body)
		}
	})
}

// A list that is longer than a buffer arrives whole, in order.
func TestLongDirectory(t *testing.T) {
	test(t, relay.Config{}, func(w *world) {
		var nodes []*node
		for range 30 {
			c := credential(w)
			n := w.connect(c, 1, chunked("answer"))
			d := descriptor()
			for i := range 60 {
				d.Models = append(d.Models, identity.Model{ID: fmt.Sprint("model-with-a-name-", i)})
			}
			n.lines <- bundleLine(w, c, d)
			nodes = append(nodes, n)
		}
		synctest.Wait()
		if ids := w.listed(""); len(ids) != 30 || !slices.IsSorted(ids) {
			w.Errorf("%d nodes: %v", len(ids), ids)
		}
		for _, n := range nodes {
			n.close()
		}
	})
}
