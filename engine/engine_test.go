package engine_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"

	"token.place/engine"
)

func TestNewRefuses(t *testing.T) {
	for _, cfg := range []engine.Config{
		{}, {URL: "http://a", Handler: http.NotFoundHandler()}, {URL: "127.0.0.1:8080"}, {URL: "localhost"}, {URL: "ftp://a"}, {URL: "http://"},
		{URL: "http://u:p@a"}, {URL: "http://a?x=1"}, {URL: "http://a#x"}, {URL: "http://a", Key: "k\n"}, {URL: "http://a", Key: "k k"}, {URL: "http://a", Timeout: -1},
	} {
		if _, err := engine.New(cfg); err == nil {
			t.Errorf("took %+v", cfg)
		} else if cfg.Key != "" && strings.Contains(err.Error(), cfg.Key) {
			t.Error("the error shows the key")
		}
	}
}

// odd is JSON that decoding and encoding again would change.
const odd = "{ \"temperature\": 1.0,\t\"top_p\":1e-7, \"z\":1, \"a\":2,\r\n\"unknown\":{\"é\\u00e9\":[1.50, 12345678901234567890, \"<&>\"]}, \"model\" :\t\"m\" }\n"

func TestPassesWhole(t *testing.T) {
	for _, path := range []string{
		chat, "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens", "/v1/audio/speech",
		"/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/generations", "/v1/images/edits", "/v1/images/variations",
	} {
		s := start(t, engine.Config{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != path || r.Method != "POST" {
				t.Errorf("the engine got %s %s", r.Method, r.URL.Path)
			}
			w.Header().Set("Content-Type", "application/json; charset=utf-8")
			io.Copy(w, r.Body)
		}))
		res := s.post(t, path, odd)
		body, err := io.ReadAll(res.Body)
		if err != nil || string(body) != odd || res.StatusCode != 200 {
			t.Errorf("%s: got %d, %q, %v", path, res.StatusCode, body, err)
		}
		if got := res.Header.Get("Content-Type"); got != "application/json; charset=utf-8" {
			t.Errorf("%s: got type %q", path, got)
		}
	}
}

func TestHeaders(t *testing.T) {
	var got http.Header
	var host, uri string
	s := start(t, engine.Config{Key: "secret"}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, host, uri = r.Header.Clone(), r.Host, r.RequestURI
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Retry-After", "7")
		h.Set("Cache-Control", "max-age=5")
		for _, name := range []string{"Server", "Set-Cookie", "X-Request-Id", "Openai-Organization", "Content-Disposition", "Access-Control-Allow-Origin", "Alt-Svc", "Link"} {
			h.Set(name, "x")
		}
		io.WriteString(w, "{}")
	}))
	r := httptest.NewRequest("POST", "http://node:80"+chat+"?beta=true&x=%zz", strings.NewReader("{}"))
	r.RequestURI = ""
	for _, name := range []string{
		"Content-Type", "Accept", "Openai-Beta", "Anthropic-Version", "Anthropic-Beta", // these pass
		"Authorization", "X-Api-Key", "User-Agent", "Cookie", "Origin", "Referer", "Forwarded", "X-Forwarded-For", "X-Stainless-Os", "Accept-Encoding",
		"Accept-Language", "Via", "Idempotency-Key", "Te", "Expect-Ct", "Upgrade", "Proxy-Authorization", "Range", "If-None-Match",
	} {
		r.Header.Set(name, "application/json")
	}
	res, err := s.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	want := http.Header{"Authorization": {"Bearer secret"}, "Content-Length": {"2"}}
	for _, name := range []string{"Content-Type", "Accept", "Openai-Beta", "Anthropic-Version", "Anthropic-Beta"} {
		want.Set(name, "application/json")
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the engine got headers %v", got)
	}
	if host != "engine" || uri != chat {
		t.Errorf("the engine got host %q, URI %q", host, uri)
	}
	back := res.Header.Clone()
	back.Del("Date")
	if want := (http.Header{"Content-Type": {"application/json"}, "Retry-After": {"7"}, "Cache-Control": {"no-store"}, "Content-Length": {"2"}}); !reflect.DeepEqual(back, want) {
		t.Errorf("the client got headers %v", back)
	}
}

func TestContentType(t *testing.T) {
	// Small servers take only a length, strict ones only JSON's own type.
	s := start(t, engine.Config{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"type":%q,"length":%d}`, r.Header.Get("Content-Type"), r.ContentLength)
	}))
	for _, test := range []struct {
		contentType string
		body        io.Reader
		want        string
	}{
		{"application/x-www-form-urlencoded", strings.NewReader("{}"), `{"type":"application/json","length":2}`},
		{"", strings.NewReader("{}"), `{"type":"application/json","length":2}`},
		{"multipart/form-data; boundary=x", strings.NewReader("--x--"), `{"type":"multipart/form-data; boundary=x","length":5}`},
		{"application/json", io.MultiReader(strings.NewReader("{}")), `{"type":"application/json","length":2}`},
		{"application/json", io.MultiReader(strings.NewReader(strings.Repeat(" ", 1<<20)), strings.NewReader("{}")), `{"type":"application/json","length":-1}`},
	} {
		res, err := s.client.Post("http://node"+chat, test.contentType, test.body)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(res.Body); string(body) != test.want {
			t.Errorf("%s: got %s", test.contentType, body)
		}
		res.Body.Close()
	}
}

func TestBasePath(t *testing.T) {
	for url, want := range map[string]string{
		"http://engine": "/v1/models", "http://engine/": "/v1/models", "http://engine/v1": "/v1/models", "http://engine:80/v1/": "/v1/models",
		"http://engine/openai/v1": "/openai/v1/models", "http://engine/openai/": "/openai/v1/models",
	} {
		var got string
		s := start(t, engine.Config{URL: url}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got = r.RequestURI
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, "{}")
		}))
		res, err := s.client.Get("http://node/v1/models")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got != want {
			t.Errorf("%s: the engine got %s", url, got)
		}
	}
}

func TestRefusesPaths(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("%s %s reached the engine", r.Method, r.RequestURI)
	})
	for _, s := range []*stub{start(t, engine.Config{}, handler), start(t, engine.Config{Handler: handler}, handler)} {
		for _, path := range []string{"/", "/api/pull", "/v1/models/../../api/pull", "/v1/models/..%2fapi", "/v1//models", "/v1/files", "/metrics", "/v1/chat%2fcompletions", "/v1/%63ompletions"} {
			for _, method := range []string{"GET", "POST"} {
				w := httptest.NewRecorder()
				s.engine.ServeHTTP(w, httptest.NewRequest(method, path, nil))
				checkError(t, w.Result(), 404, "unknown_path")
			}
		}
		for path, methods := range map[string][]string{chat: {"GET", "PUT", "DELETE", "OPTIONS"}, "/v1/models": {"POST", "DELETE"}} {
			for _, method := range methods {
				w := httptest.NewRecorder()
				s.engine.ServeHTTP(w, httptest.NewRequest(method, path, nil))
				checkError(t, w.Result(), 405, "method_not_allowed")
				if allow := w.Header().Get("Allow"); allow != "GET" && allow != "POST" {
					t.Errorf("%s %s: Allow is %q", method, path, allow)
				}
			}
		}
	}
}

func TestHandler(t *testing.T) {
	e, err := engine.New(engine.Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, r.Body)
	})})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	w := httptest.NewRecorder()
	e.ServeHTTP(w, httptest.NewRequest("POST", chat, strings.NewReader(odd)))
	if w.Code != 200 || w.Body.String() != odd || e.Name() != "pocket" {
		t.Errorf("%s: got %d, %s", e.Name(), w.Code, w.Body)
	}
}

// TestAnswersBeforeTheRequestEnds is for engines that answer at once, which
// HTTP/1.1 servers in between make short.
func TestAnswersBeforeTheRequestEnds(t *testing.T) {
	answer := `{"choices":[{"message":{"content":"` + strings.Repeat("river ", 300) + `"}}]}`
	stream := strings.Repeat("data: "+answer[:200]+"\n\n", 20) + "data: [DONE]\n\n"
	s := start(t, engine.Config{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "chat/completions") {
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, stream)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, answer)
	}))
	request := []byte(`{"model":"m","prompt":"` + strings.Repeat("x", 4<<10) + `"}`)
	const workers = 8
	each := 10000 / workers
	if testing.Short() {
		each = 100
	}
	var short atomic.Int64
	failed := make(chan error, workers)
	for range workers {
		go func() {
			var broken error
			for i := range each {
				path, want := "/v1/completions", answer
				if i%2 == 0 {
					path, want = chat, stream
				}
				res, err := s.client.Post("http://node"+path, "application/json", bytes.NewReader(request))
				if err != nil {
					broken = err
					break
				}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				if string(body) != want {
					short.Add(1)
					broken = errors.Join(broken, err)
				}
			}
			failed <- broken
		}()
	}
	for range workers {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	if n := short.Load(); n > 0 {
		t.Errorf("%d of %d answers were short", n, workers*each)
	}
}

func BenchmarkEngine(b *testing.B) {
	s := start(b, engine.Config{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, "{}")
	}))
	request := strings.Repeat(" ", 4<<10)
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		s.engine.ServeHTTP(w, httptest.NewRequest("POST", chat, strings.NewReader(request)))
		if w.Code != 200 {
			b.Fatal(w.Code)
		}
	}
}
