package client_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"token.place/client"
	"token.place/identity"
)

// local is a Server on a network in memory, and an app that uses it.
type local struct {
	t    testing.TB
	app  *http.Client
	stop context.CancelFunc
	done chan error
}

const localAddr = "127.0.0.1:8080"

func (n *network) local(cfg client.ServerConfig) *local {
	n.t.Helper()
	srv, err := client.NewServer(cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	ln, err := n.net.Listen(localAddr)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	l := &local{n.t, &http.Client{Transport: &http.Transport{DialContext: n.net.Dial, DisableCompression: true}}, stop, make(chan error, 1)}
	go func() { l.done <- srv.Serve(ctx, ln) }()
	n.t.Cleanup(func() {
		l.app.CloseIdleConnections()
		stop()
		if err := <-l.done; err != nil {
			n.t.Errorf("serve: %v", err)
		}
		l.done <- nil
	})
	return l
}

// serve is a whole path: a server, a relay, a node with this engine.
func serve(t testing.TB, engine http.HandlerFunc, cfg client.ServerConfig) (*local, *stubRelay) {
	n := newNode(t, engine, "m")
	net := newNetwork(t)
	r := net.relay("relay.test", n)
	cfg.Transport = net.client(client.Config{Trust: pins(n), Aliases: map[string]string{"gpt-5-chat-latest": "m"}}, r)
	return net.local(cfg), r
}

func (l *local) do(method, path, body string, header ...string) (*http.Response, error) {
	l.t.Helper()
	return l.send(context.Background(), method, path, body, header...)
}

func (l *local) send(ctx context.Context, method, path, body string, header ...string) (*http.Response, error) {
	l.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+localAddr+path, strings.NewReader(body))
	if err != nil {
		l.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		} else {
			req.Header.Add(header[i], header[i+1])
		}
	}
	return l.app.Do(req)
}

// get performs a request and returns its answer whole.
func (l *local) get(method, path, body string, header ...string) (*http.Response, string) {
	l.t.Helper()
	resp, err := l.do(method, path, body, header...)
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Errorf("%s %s: %v after %q", method, path, err, b)
	}
	return resp, string(b)
}

const completions = "/v1/chat/completions"

// event is one that a stub engine streams.
func event(w io.Writer, data string) {
	fmt.Fprintf(w, "data: %s\n\n", data)
	if w, ok := w.(http.ResponseWriter); ok {
		http.NewResponseController(w).Flush()
	}
}

func streams(f func(w http.ResponseWriter, r *http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		f(w, r)
	}
}

const chatStream = `{"model":"m","stream":true,"messages":[]}`

func TestServerPassesAnswersOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Retry-After", "1")
			w.Header().Set("Set-Cookie", "a=b")
			w.Header().Set("Access-Control-Allow-Origin", "*")
			w.Header().Set("Location", "https://evil.test/")
			w.WriteHeader(201)
			w.Write(body)
		}, client.ServerConfig{})
		for _, path := range []string{completions, "/chat/completions", completions + "?x=y"} {
			resp, body := l.get("POST", path, chat)
			if resp.StatusCode != 201 || body != chat || resp.Header.Get("Retry-After") != "1" {
				t.Errorf("%s: %d %s %v", path, resp.StatusCode, body, resp.Header)
			}
			for _, name := range []string{"Set-Cookie", "Access-Control-Allow-Origin", "Location"} {
				if v := resp.Header.Get(name); v != "" {
					t.Errorf("the node set %s: %s", name, v)
				}
			}
			if resp.Header.Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(resp.Header.Get("Content-Security-Policy"), "sandbox") {
				t.Errorf("header %v", resp.Header)
			}
		}
	})
}

func TestServerStreams(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, _ := serve(t, streams(func(w http.ResponseWriter, _ *http.Request) {
			for i := range 5 {
				event(w, fmt.Sprint(i))
				time.Sleep(time.Second)
			}
			event(w, "[DONE]")
		}), client.ServerConfig{})
		resp, err := l.do("POST", completions, chatStream)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
			t.Error(got)
		}
		start := time.Now()
		lines := bufio.NewScanner(resp.Body)
		for i := range 6 {
			lines.Scan()
			if d := time.Since(start); d != time.Duration(i)*time.Second {
				t.Errorf("event %d %q after %v", i, lines.Text(), d)
			}
			lines.Scan()
		}
	})
}

func TestServerModels(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, _ := serve(t, says("ok"), client.ServerConfig{})
		_, body := l.get("GET", "/v1/models", "")
		want := `{"object":"list","data":[{"id":"gpt-5-chat-latest","object":"model","created":0,"owned_by":"token.place","context_length":4096,"alias_of":"m"},` +
			`{"id":"m","object":"model","created":0,"owned_by":"token.place","context_length":4096}]}`
		if body != want {
			t.Errorf("got %s", body)
		}
		if _, body := l.get("GET", "/models/m", ""); !strings.HasPrefix(body, `{"id":"m","object":"model"`) {
			t.Errorf("got %s", body)
		}
		resp, body := l.get("GET", "/v1/models/x", "")
		if resp.StatusCode != 404 || !strings.Contains(body, `"code":"model_not_found"`) {
			t.Errorf("got %d %s", resp.StatusCode, body)
		}
	})
}

func TestServerErrors(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, _ := serve(t, says("ok"), client.ServerConfig{})
		for _, c := range []struct {
			method, path, body string
			status             int
			code, allow        string
		}{
			{"GET", "/v1/nothing", "", 404, "unknown_path", ""},
			{"POST", "/v1/files", "{}", 404, "unknown_path", ""},
			{"GET", "/favicon.ico", "", 404, "unknown_path", ""},
			{"GET", completions, "", 405, "method_not_allowed", "POST"},
			{"DELETE", "/v1/models", "", 405, "method_not_allowed", "GET"},
			{"POST", "/v1/models", "{}", 405, "method_not_allowed", "GET"},
			{"POST", "/healthz", "", 405, "method_not_allowed", "GET, HEAD"},
			{"POST", completions, "{", 400, "invalid_body", ""},
			{"POST", completions, "{}", 400, "model_required", ""},
			{"POST", completions, `{"model":"x"}`, 404, "model_not_found", ""},
			{"POST", completions, strings.Repeat(" ", client.MaxBody+1), 413, "request_too_large", ""},
		} {
			resp, body := l.get(c.method, c.path, c.body)
			var e struct {
				Error *struct {
					Message, Type string
					Code          string
				}
			}
			if err := json.Unmarshal([]byte(body), &e); err != nil || e.Error == nil || e.Error.Message == "" || e.Error.Type == "" {
				t.Errorf("%s %s: not an OpenAI error: %s", c.method, c.path, body)
				continue
			}
			if resp.StatusCode != c.status || e.Error.Code != c.code || resp.Header.Get("Allow") != c.allow {
				t.Errorf("%s %s: %d %s Allow %q", c.method, c.path, resp.StatusCode, body, resp.Header.Get("Allow"))
			}
		}
		for _, path := range []string{"/", "/v1", "/healthz"} {
			if resp, body := l.get("GET", path, ""); resp.StatusCode != 200 || path != "/healthz" && !strings.Contains(body, "http://127.0.0.1:8080/v1\n") {
				t.Errorf("%s: %d %s", path, resp.StatusCode, body)
			}
		}
	})
}

func TestServerKey(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, _ := serve(t, says("ok"), client.ServerConfig{Key: "sesame"})
		for _, c := range []struct {
			name, value string
			status      int
		}{
			{"Authorization", "Bearer sesame", 200}, {"Authorization", "bearer sesame", 200}, {"X-Api-Key", "sesame", 200},
			{"Authorization", "Bearer sesam", 401}, {"Authorization", "Basic sesame", 401}, {"Authorization", "sesame", 401},
			{"X-Api-Key", "", 401}, {"X-Api-Key", "Sesame", 401},
		} {
			if resp, body := l.get("POST", completions, chat, c.name, c.value); resp.StatusCode != c.status {
				t.Errorf("%s %s: %d %s", c.name, c.value, resp.StatusCode, body)
			}
		}
		if resp, _ := l.get("GET", "/v1/models", ""); resp.StatusCode != 401 {
			t.Errorf("models without a key: %d", resp.StatusCode)
		}
		if resp, body := l.get("GET", "/", ""); resp.StatusCode != 200 || strings.Contains(body, "sesame") {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	})
}

func TestPagesOfOthersAreRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, _ := serve(t, says("ok"), client.ServerConfig{Hosts: []string{"gpu.lan", "box.lan:1234"}, Origins: []string{"https://chat.example", "app://obsidian.md"}})
		for _, c := range []struct {
			header string // name: value, …
			ok     bool
		}{
			{"Host: 127.0.0.1", true}, {"Host: 127.0.0.1:8080", true}, {"Host: 127.9.9.9:1", true}, {"Host: localhost", true},
			{"Host: LOCALHOST:99", true}, {"Host: [::1]", true}, {"Host: [::1]:80", true}, {"Host: [::ffff:127.0.0.1]:80", true},
			{"Host: gpu.lan", true}, {"Host: gpu.lan:80", true}, {"Host: box.lan:1234", true},
			{"Host: box.lan:1235", false}, {"Host: box.lan", false}, {"Host: evil.test", false}, {"Host: evil.test:8080", false},
			{"Host: 127.0.0.1.evil.test", false}, {"Host: localhost.evil.test", false}, {"Host: xlocalhost", false}, {"Host: localhost.", false},
			{"Host: 0.0.0.0:8080", false}, {"Host: 192.168.1.5:8080", false}, {"Host: [::]:8080", false}, {"Host: [fe80::1]:80", false},
			{"Host: 2130706433", false}, {"Host: 0x7f.1", false}, {"Host: 127.1", false}, {"Host: 1.0.0.127.in-addr.arpa", false},

			{"Origin: http://localhost:3000", true}, {"Origin: http://127.0.0.1", true}, {"Origin: https://localhost", true}, {"Origin: http://[::1]:5173", true},
			{"Origin: https://chat.example", true}, {"Origin: app://obsidian.md", true}, {"Origin: HTTPS://CHAT.example", true},
			{"Origin: null", false}, {"Origin: https://evil.test", false}, {"Origin: https://chat.example.evil.test", false},
			{"Origin: http://chat.example", false}, {"Origin: https://chat.example:444", false}, {"Origin: http://localhost.evil.test", false},
			{"Origin: http://localhost@evil.test", false}, {"Origin: file://", false}, {"Origin: file://localhost", false}, {"Origin: chrome-extension://localhost", false},
			{"Origin: http://localhost/x", false}, {"Origin: ", false}, {"Origin: http://localhost, Origin: https://evil.test", false},

			{"Sec-Fetch-Site: cross-site", false}, {"Sec-Fetch-Site: same-origin", true}, {"Sec-Fetch-Site: none", true}, {"Sec-Fetch-Site: same-site", true},
			{"Origin: https://chat.example, Sec-Fetch-Site: cross-site", true},
		} {
			var header []string
			for field := range strings.SplitSeq(c.header, ", ") {
				name, value, _ := strings.Cut(field, ": ")
				header = append(header, name, value)
			}
			for _, path := range []string{completions, "/", "/healthz"} {
				method := map[bool]string{true: "POST", false: "GET"}[path == completions]
				resp, body := l.get(method, path, chat, header...)
				if resp.StatusCode != map[bool]int{true: 200, false: 403}[c.ok] {
					t.Errorf("%s %s: %d %s", path, c.header, resp.StatusCode, body)
				}
				if !c.ok && (!strings.Contains(body, "_not_allowed") || resp.Header.Get("Access-Control-Allow-Origin") != "") {
					t.Errorf("%s: %s %v", c.header, body, resp.Header)
				}
				if c.ok && header[0] == "Origin" && (resp.Header.Get("Access-Control-Allow-Origin") != header[1] || resp.Header.Get("Vary") != "Origin") {
					t.Errorf("%s: header %v", c.header, resp.Header)
				}
			}
		}
	})
}

func TestPreflight(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, r := serve(t, says("ok"), client.ServerConfig{Key: "sesame"})
		ask := []string{"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,x-stainless-os", "Access-Control-Request-Private-Network", "true"}
		resp, _ := l.get("OPTIONS", completions, "", append(ask, "Origin", "http://localhost:3000")...)
		h := resp.Header
		if resp.StatusCode != 204 || h.Get("Access-Control-Allow-Origin") != "http://localhost:3000" || h.Get("Access-Control-Allow-Headers") != "authorization,x-stainless-os" ||
			h.Get("Access-Control-Allow-Methods") != "GET, POST" || h.Get("Access-Control-Allow-Private-Network") != "true" || h.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%d %v", resp.StatusCode, h)
		}
		resp, _ = l.get("OPTIONS", completions, "", append(ask, "Origin", "https://evil.test")...)
		if resp.StatusCode != 403 || resp.Header.Get("Access-Control-Allow-Methods") != "" {
			t.Errorf("%d %v", resp.StatusCode, resp.Header)
		}
		if _, exchanges := r.counts(); exchanges != 0 {
			t.Errorf("%d exchanges", exchanges)
		}
	})
}

func TestServerConfigIsChecked(t *testing.T) {
	relay, _ := identity.ParseRelay("https://relay.test")
	tr, err := client.New(client.Config{Relays: []identity.Relay{relay}})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	for want, cfg := range map[string]client.ServerConfig{
		"needs a transport":               {},
		`allowed host "*.lan"`:            {Transport: tr, Hosts: []string{"*.lan"}},
		`allowed host ""`:                 {Transport: tr, Hosts: []string{""}},
		`allowed origin "*"`:              {Transport: tr, Origins: []string{"*"}},
		`allowed origin "null"`:           {Transport: tr, Origins: []string{"null"}},
		`allowed origin "https://*.test"`: {Transport: tr, Origins: []string{"https://*.test"}},
		`allowed origin "https://a/"`:     {Transport: tr, Origins: []string{"https://a/"}},
	} {
		if _, err := client.NewServer(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
}

func TestServerKeepsTheLength(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, _ := serve(t, says(strings.Repeat("x", 100_000)), client.ServerConfig{})
		if resp, body := l.get("POST", completions, chat); len(body) != 100_000 {
			t.Errorf("%d bytes, header %v", len(body), resp.Header)
		}
	})
}

func TestServerSurvivesAborts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, _ := serve(t, streams(func(w http.ResponseWriter, r *http.Request) { event(w, "x"); panic(http.ErrAbortHandler) }), client.ServerConfig{})
		for range 3 {
			resp, err := l.do("POST", completions, chatStream)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(resp.Body); err == nil {
				t.Error("no error")
			}
			resp.Body.Close()
		}
		if resp, _ := l.get("GET", "/healthz", ""); resp.StatusCode != 200 {
			t.Error("the server did not survive")
		}
	})
}

// The end of a connection is how HTTP/1.0 tells the end of an answer, whole or
// not.
func TestOldHTTPIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		n := newNode(t, says("ok"), "m")
		net.local(client.ServerConfig{Transport: net.client(client.Config{Trust: pins(n)}, net.relay("relay.test", n))})
		conn, err := net.net.Dial(t.Context(), "tcp", localAddr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(chat), chat)
		got, err := io.ReadAll(conn)
		if err != nil || !strings.Contains(string(got), " 505 ") || !strings.Contains(string(got), "proxy_http_version 1.1") {
			t.Errorf("got %q, %v", got, err)
		}
	})
}
