package client_test

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"token.place/client"
	"token.place/identity"
)

// bubble runs a test with time of its own.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func TestAnExchangeIsSealed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var got string
		n := newNode(t, func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			got = r.Method + " " + r.URL.String() + " " + string(b)
			io.WriteString(w, "SECRET-ANSWER")
		}, "m")
		net := newNetwork(t)
		r := net.relay("relay.test", n)
		var seen bytes.Buffer
		r.exchange = func(w http.ResponseWriter, req *http.Request, _ *stubNode) bool {
			req.Body = struct {
				io.Reader
				io.Closer
			}{io.TeeReader(req.Body, &seen), req.Body}
			return false
		}
		tr := net.client(client.Config{Trust: pins(n)}, r)
		status, answer := ask(t, tr, chat)
		if status != 200 || answer != "SECRET-ANSWER" {
			t.Errorf("got %d %q", status, answer)
		}
		if want := "POST /v1/chat/completions " + chat; got != want {
			t.Errorf("the engine got %q, want %q", got, want)
		}
		if seen.Len() < 4096 || bytes.Contains(seen.Bytes(), []byte("SECRET")) {
			t.Errorf("the relay saw %d bytes: %q", seen.Len(), seen.Bytes())
		}
		if n := client.InFlight(tr, n.id); n != 0 {
			t.Errorf("%d exchanges in flight after the end", n)
		}
	})
}

func TestOnlyNeededHeadersLeave(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var inner http.Header
		n := newNode(t, func(w http.ResponseWriter, r *http.Request) { inner = r.Header.Clone(); io.Copy(io.Discard, r.Body) }, "m")
		net := newNetwork(t)
		r := net.relay("relay.test", n)
		tr := net.client(client.Config{Trust: pins(n)}, r)
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://127.0.0.1:8080/chat/completions?beta=true&key=SECRET", strings.NewReader(chat))
		for k, v := range map[string]string{
			// Needed.
			"Content-Type": "application/json", "Accept": "text/event-stream", "OpenAI-Beta": "assistants=v2",
			"anthropic-version": "2023-06-01", "anthropic-beta": "tools",
			// What SDKs, browsers and proxies say besides.
			"Authorization": "Bearer SECRET", "x-api-key": "SECRET", "api-key": "SECRET", "OpenAI-Organization": "SECRET", "OpenAI-Project": "SECRET",
			"User-Agent": "OpenAI/Python 1.0", "X-Stainless-Lang": "python", "X-Stainless-OS": "Linux", "X-Stainless-Arch": "x64",
			"X-Stainless-Runtime": "CPython", "X-Stainless-Runtime-Version": "3.13", "X-Stainless-Package-Version": "1.0",
			"X-Stainless-Retry-Count": "0", "X-Stainless-Read-Timeout": "600", "X-Stainless-Async": "false", "X-Stainless-Raw-Response": "true",
			"Cookie": "SECRET", "Origin": "http://localhost", "Referer": "http://localhost/SECRET", "Accept-Language": "de", "Accept-Encoding": "gzip",
			"X-Forwarded-For": "198.51.100.7", "Forwarded": "for=198.51.100.7", "Via": "1.1 SECRET", "X-Request-Id": "SECRET", "Idempotency-Key": "SECRET",
			"Traceparent": "00-SECRET", "Baggage": "SECRET", "Sec-Fetch-Site": "same-origin", "Sec-Ch-Ua": "SECRET", "Dnt": "1", "HTTP-Referer": "SECRET", "X-Title": "SECRET",
			"Anthropic-Dangerous-Direct-Browser-Access": "true", "Helicone-Auth": "SECRET", "Date": "Mon, 01 Jan 1990 00:00:00 GMT",
		} {
			req.Header.Set(k, v)
		}
		before := req.Header.Clone()
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if !maps.EqualFunc(before, req.Header, slices.Equal) {
			t.Error("RoundTrip changed the app's request")
		}
		names := slices.Sorted(maps.Keys(inner))
		want := []string{"Accept", "Anthropic-Beta", "Anthropic-Version", "Content-Type", "Date", "Openai-Beta"}
		if !slices.Equal(names, want) {
			t.Errorf("the node got the fields %v, want %v", names, want)
		}
		if inner.Get("Date") == before.Get("Date") {
			t.Error("the date is the app's")
		}
		for _, h := range r.headers {
			for name := range h {
				if !slices.Contains([]string{"Accept", "Content-Length", "Content-Type", "Incremental"}, name) {
					t.Errorf("the relay got the field %s: %s", name, h[name])
				}
			}
		}
	})
}

func TestPathsAndMethods(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var path string
		n := newNode(t, func(w http.ResponseWriter, r *http.Request) { path = r.URL.String(); io.Copy(io.Discard, r.Body) }, "m")
		net := newNetwork(t)
		tr := net.client(client.Config{Trust: pins(n)}, net.relay("relay.test", n))
		for _, c := range []struct{ method, url, want, code string }{
			{"POST", "https://api.openai.com/v1/chat/completions", "/v1/chat/completions", ""},
			{"POST", "http://localhost/chat/completions", "/v1/chat/completions", ""},
			{"POST", "http://localhost/v1/embeddings?x=1", "/v1/embeddings", ""},
			{"POST", "http://localhost/messages", "/v1/messages", ""},
			{"GET", "http://localhost/v1/chat/completions", "", "method_not_allowed"},
			{"POST", "http://localhost/v1/models", "", "method_not_allowed"},
			{"POST", "http://localhost/v1/files", "", "unknown_path"},
			{"POST", "http://localhost/v1/v1/embeddings", "", "unknown_path"},
			{"POST", "http://localhost/v1/../admin", "", "unknown_path"},
			{"POST", "http://localhost/v1/chat%2fcompletions", "", "unknown_path"},
			{"DELETE", "http://localhost/v1/models/m", "", "method_not_allowed"},
		} {
			path = ""
			req, _ := http.NewRequestWithContext(t.Context(), c.method, c.url, strings.NewReader(chat))
			resp, err := tr.RoundTrip(req)
			code := ""
			if err != nil {
				code = err.(*client.Error).Code
			} else {
				resp.Body.Close()
			}
			if path != c.want || code != c.code {
				t.Errorf("%s %s: the engine got %q, code %q; want %q, %q", c.method, c.url, path, code, c.want, c.code)
			}
		}
	})
}

func TestAliasChangesTheModelAndNothingElse(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var got string
		n := newNode(t, func(w http.ResponseWriter, r *http.Request) { b, _ := io.ReadAll(r.Body); got = string(b) }, "m", "gpt-real")
		net := newNetwork(t)
		tr := net.client(client.Config{Trust: pins(n), Aliases: map[string]string{"gpt-5-chat-latest": "m", "gpt-real": "m"}}, net.relay("relay.test", n))
		odd := `{ "temperature":1.0, "messages":[{"role":"user","content":"model \u0041"}],"x":1e400, "model" :  "gpt-5-chat-latest" ,"seed":12345678901234567890}`
		for body, want := range map[string]string{
			odd:                    strings.Replace(odd, "gpt-5-chat-latest", "m", 1),
			`{"model":"gpt-real"}`: `{"model":"m"}`, // an alias goes before a model
			`{"model":"m"}`:        `{"model":"m"}`,
		} {
			if status, _ := ask(t, tr, body); status != 200 || got != want {
				t.Errorf("sent %s, the engine got %s, want %s", body, got, want)
			}
		}
		models, err := tr.Models(t.Context())
		want := []client.Model{{"gpt-5-chat-latest", "m", 4096, 1}, {"gpt-real", "m", 4096, 1}, {"m", "", 4096, 1}}
		if err != nil || !slices.Equal(models, want) {
			t.Errorf("models %+v, %v; want %+v", models, err, want)
		}
	})
}

func TestBadRequests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNode(t, says("ok"), "m", "other")
		net := newNetwork(t)
		r := net.relay("relay.test", n)
		tr := net.client(client.Config{Trust: pins(n), Aliases: map[string]string{"a": "gone", "b": "m"}}, r)
		for body, want := range map[string]struct {
			status int
			code   string
			says   string
		}{
			`{"model":`:         {400, "invalid_body", "not valid JSON"},
			``:                  {400, "model_required", "names no model"},
			`{"messages":[]}`:   {400, "model_required", "GET /v1/models"},
			`{"model":"gpt-5"}`: {404, "model_not_found", `offers the model "gpt-5". There are: b, m, other. Ask for one of these, or give it this name with --alias gpt-5=m`},
			`{"model":"a"}`:     {404, "model_not_found", `the alias "a" stands for the model "gone", which no node that you trust offers`},
		} {
			if e := refused(t, tr, body); e.Status != want.status || e.Code != want.code || !strings.Contains(e.Message, want.says) {
				t.Errorf("%s: %d %s %s", body, e.Status, e.Code, e.Message)
			}
		}
		if e := refused(t, tr, strings.Repeat(" ", client.MaxBody+1)); e.Status != 413 || !strings.Contains(e.Message, "32 MiB") {
			t.Errorf("too large: %d %s", e.Status, e.Message)
		}
		for _, value := range []string{strings.Repeat("x", 10_000), "a\r\nb"} {
			req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://x/v1/embeddings", strings.NewReader(chat))
			req.Header["Anthropic-Beta"] = []string{value}
			if _, err := tr.RoundTrip(req); err == nil || !strings.Contains(err.Error(), "Anthropic-Beta is malformed") {
				t.Errorf("a bad header field: %v", err)
			}
		}
		if _, exchanges := r.counts(); exchanges != 0 {
			t.Errorf("%d bad requests left", exchanges)
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	good, err := identity.ParseRelay("https://relay.test")
	if err != nil {
		t.Fatal(err)
	}
	relays := []identity.Relay{good}
	for want, cfg := range map[string]client.Config{
		"no relay":             {},
		"no https URL":         {Relays: []identity.Relay{{}}},
		"given twice":          {Relays: []identity.Relay{good, good}},
		"pinned node":          {Relays: relays, Trust: identity.Trust{Nodes: []identity.ID{"x"}}},
		"both sides":           {Relays: relays, Aliases: map[string]string{"": "m"}},
		"means itself":         {Relays: relays, Aliases: map[string]string{"m": "m"}},
		"is an alias itself":   {Relays: relays, Aliases: map[string]string{"a": "b", "b": "m"}},
		"no control character": {Relays: relays, Aliases: map[string]string{"a": "b\n"}},
	} {
		if _, err := client.New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
}

func TestClosedTransport(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		n := newNode(t, says("ok"), "m")
		tr := net.client(client.Config{Trust: pins(n)}, net.relay("relay.test", n))
		tr.Close()
		if e := refused(t, tr, chat); e.Code != "closed" {
			t.Errorf("got %s %s", e.Code, e.Message)
		}
	})
}
