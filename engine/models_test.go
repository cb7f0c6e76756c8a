package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"token.place/engine"
	"token.place/internal/memnet"
	"token.place/openai"
)

// answers is an engine that knows these questions, "GET /path" or
// "POST /path body", and answers them in JSON.
type answers map[string]string

func (a answers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	answer, ok := a[strings.TrimSpace(r.Method+" "+r.URL.Path+" "+string(body))]
	if !ok {
		http.NotFound(w, r)
		return
	}
	if server := a["Server"]; server != "" {
		w.Header().Set("Server", server)
	}
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, answer)
}

var (
	llamaServer = answers{
		"GET /v1/models": `{"models":[{"name":"pocket"}],"object":"list","data":[{"id":"pocket","owned_by":"llamacpp","meta":{"n_ctx_train":512}}]}`,
		"GET /props":     `{"default_generation_settings":{"n_ctx":256},"total_slots":2}`,
	}
	ollama = answers{
		"GET /v1/models":   `{"object":"list","data":[{"id":"llama3.2:1b","owned_by":"library"},{"id":"qwen3:8b","owned_by":"library"},{"id":"me/mine:latest","owned_by":"me"}]}`,
		"GET /api/version": `{"version":"0.12.1"}`,
		"GET /api/ps":      `{"models":[{"name":"qwen3:8b","context_length":4096}]}`,
		"POST /api/show {\"model\":\"me/mine:latest\"}": `{"parameters":"stop \"<|eot|>\"\nnum_ctx                        8192\n","model_info":{"llama.context_length":131072}}`,
		"POST /api/show {\"model\":\"llama3.2:1b\"}":    `{"parameters":"num_ctx many","model_info":{"llama.context_length":131072}}`,
	}
	lmStudio = answers{
		"GET /v1/models":     `{"data":[{"id":"a","object":"model","owned_by":"organization_owner"},{"id":"b","object":"model","owned_by":"organization_owner"}]}`,
		"GET /api/v0/models": `{"data":[{"id":"a","state":"loaded","max_context_length":131072,"loaded_context_length":4096},{"id":"c","max_context_length":1}]}`,
	}
	vllm = answers{"GET /v1/models": `{"object":"list","data":[{"id":"Qwen/Qwen3-8B","owned_by":"vllm","root":"/models/x","max_model_len":32768}]}`}
)

func TestModels(t *testing.T) {
	for _, test := range []struct {
		name   string
		engine answers
		models []openai.Model
	}{
		{"llama-server", llamaServer, []openai.Model{{ID: "pocket", OwnedBy: "llamacpp", ContextLength: 256}}},
		{"llama-server", answers{"Server": "llama.cpp", "GET /v1/models": `{"data":[{"id":"a","meta":{"n_ctx_train":512}}]}`, "GET /props": `[]`},
			[]openai.Model{{ID: "a", ContextLength: 512}}},
		{"Ollama", ollama, []openai.Model{{ID: "llama3.2:1b", OwnedBy: "library"}, {ID: "qwen3:8b", OwnedBy: "library", ContextLength: 4096},
			{ID: "me/mine:latest", OwnedBy: "me", ContextLength: 8192}}},
		{"Ollama", answers{"GET /v1/models": `{"object":"list","data":null}`, "GET /api/version": `{"version":"0.1"}`}, nil},
		{"LM Studio", lmStudio, []openai.Model{{ID: "a", OwnedBy: "organization_owner", ContextLength: 4096}, {ID: "b", OwnedBy: "organization_owner"}}},
		{"LM Studio", answers{"GET /v1/models": `{"data":[]}`, "GET /api/v0/models": `{"data":[]}`}, nil},
		{"vLLM", vllm, []openai.Model{{ID: "Qwen/Qwen3-8B", OwnedBy: "vllm", ContextLength: 32768}}},
		{"other", answers{"GET /v1/models": `{"object":"list","data":[{"id":"gpt-oss","context_window":8192}]}`, "GET /api/version": `{}`},
			[]openai.Model{{ID: "gpt-oss", ContextLength: 8192}}},
	} {
		s := start(t, engine.Config{}, test.engine)
		if s.engine.Name() != "other" {
			t.Errorf("before it was asked it is %q", s.engine.Name())
		}
		got, err := s.engine.Models(t.Context())
		if err != nil || !reflect.DeepEqual([]openai.Model(got), test.models) || s.engine.Name() != test.name {
			t.Errorf("%s: got %q, %+v, %v", test.name, s.engine.Name(), got, err)
		}
	}
}

func TestOneModel(t *testing.T) {
	get := func(h http.Handler, path string) *http.Response {
		w := httptest.NewRecorder()
		start(t, engine.Config{}, h).engine.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Result()
	}
	res := get(vllm, "/v1/models/Qwen/Qwen3-8B")
	if body, _ := io.ReadAll(res.Body); string(body) != `{"id":"Qwen/Qwen3-8B","object":"model","created":0,"owned_by":"vllm","context_length":32768}` {
		t.Errorf("got %d, %s", res.StatusCode, body)
	}
	checkError(t, get(vllm, "/v1/models/Qwen"), 404, "model_not_found")
	checkError(t, get(vllm, "/v1/models/qwen/%C3%A9"), 404, "model_not_found")
	status := func(code int) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(code) })
	}
	checkError(t, get(status(401), "/v1/models/a"), 502, "engine_refused_key")
	checkError(t, get(status(503), "/v1/models/a"), 503, "engine_unavailable")
	checkError(t, get(status(200), "/v1/models/a"), 502, "engine_bad_answer")
}

func TestModelsOfHandler(t *testing.T) {
	e, err := engine.New(engine.Config{Handler: vllm, Name: "mine"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := e.Models(t.Context())
	if err != nil || len(got) != 1 || got[0].ContextLength != 32768 || e.Name() != "mine" {
		t.Errorf("%s: got %+v, %v", e.Name(), got, err)
	}
	e, _ = engine.New(engine.Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	})})
	if _, err := e.Models(t.Context()); !errors.Is(err, engine.ErrBadAnswer) {
		t.Errorf("an endless list: %v", err)
	}
}

func TestModelsRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		status            int
		contentType, body string
		want              error
	}{
		"HTML":     {200, "text/html", "<html>", engine.ErrBadAnswer},
		"JSON":     {200, "application/json", `{"status":"ok"}`, engine.ErrBadAnswer},
		"key":      {401, "application/json", `{"error":{"message":"Invalid API Key secret"}}`, engine.ErrKey},
		"host":     {403, "", "", engine.ErrKey},
		"loading":  {503, "application/json", `{"error":{"message":"Loading model"}}`, engine.ErrUnavailable},
		"redirect": {302, "", "", engine.ErrBadAnswer},
		"crash":    {500, "text/html", "<html>", engine.ErrBadAnswer},
		"cut off":  {200, "application/json", `{"data":[`, engine.ErrBadAnswer},
		"endless":  {200, "application/json", strings.Repeat(" ", 5<<20), engine.ErrBadAnswer},
	} {
		s := start(t, engine.Config{Key: "secret"}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer secret" {
				t.Error("the key is missing")
			}
			w.Header().Set("Content-Type", test.contentType)
			w.Header().Set("Location", "/v1/models")
			w.WriteHeader(test.status)
			io.WriteString(w, test.body)
		}))
		if _, err := s.engine.Models(t.Context()); !errors.Is(err, test.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
}

func TestModelsOfSilentEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startRaw(t, engine.Config{}, func(c net.Conn, r *http.Request) { io.Copy(io.Discard, c) })
		begin := time.Now()
		if _, err := s.engine.Models(t.Context()); !errors.Is(err, engine.ErrUnavailable) || time.Since(begin) != 10*time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	})
}

// machine is a machine with engines on some ports.
func machine(t *testing.T, engines map[string]http.Handler) engine.DetectConfig {
	s := &stub{net: memnet.New()}
	for port, h := range engines {
		s.serve(t, "127.0.0.1:"+port, h)
	}
	return engine.DetectConfig{Dial: s.net.Dial}
}

func TestDetect(t *testing.T) {
	html := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>a web page</html>") })
	hangs := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ours := answers{"GET /v1/models": `{"data":[{"id":"pocket","owned_by":"token.place"}]}`}
	for _, test := range []struct {
		name    string
		engines map[string]http.Handler
		want    []string
	}{
		{"nothing", nil, nil},
		{"all", map[string]http.Handler{"11434": ollama, "1234": lmStudio, "8000": vllm, "8080": llamaServer},
			[]string{"Ollama http://127.0.0.1:11434 3", "LM Studio http://127.0.0.1:1234 2", "vLLM http://127.0.0.1:8000 1", "llama-server http://127.0.0.1:8080 1"}},
		{"others", map[string]http.Handler{"11434": hangs, "8000": html, "8080": http.NotFoundHandler(), "1234": vllm}, []string{"vLLM http://127.0.0.1:1234 1"}},
		{"ourselves", map[string]http.Handler{"8080": ours, "8000": vllm}, []string{"vLLM http://127.0.0.1:8000 1"}},
		{"no models", map[string]http.Handler{"11434": answers{"GET /v1/models": `{"object":"list","data":null}`, "GET /api/version": `{"version":"1"}`}},
			[]string{"Ollama http://127.0.0.1:11434 0"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				found, err := engine.Detect(t.Context(), machine(t, test.engines))
				if err != nil || time.Since(begin) > 500*time.Millisecond {
					t.Errorf("after %v: %v", time.Since(begin), err)
				}
				var got []string
				for _, f := range found {
					got = append(got, fmt.Sprint(f.Name, " ", f.URL, " ", len(f.Models)))
				}
				if !reflect.DeepEqual(got, test.want) {
					t.Errorf("found %q", got)
				}
			})
		})
	}
}

func TestDetectEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := engine.Detect(ctx, machine(t, nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestLargeRequest has an engine that answers before a large request has ended.
// Behind HTTP/2, as on a node, the answer comes whole; behind HTTP/1.1 it comes
// whole or not at all.
func TestLargeRequest(t *testing.T) {
	answer := `{"data":[` + strings.Repeat("1,", 100<<10) + `1]}`
	early := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, answer)
		io.Copy(io.Discard, r.Body)
	})
	request := bytes.Repeat([]byte(" "), 4<<20)
	for _, http2 := range []bool{false, true} {
		s := start(t, engine.Config{}, early)
		if http2 {
			s.overHTTP2(t)
		}
		for range 20 {
			res, err := s.client.Post("http://node"+chat, "application/json", bytes.NewReader(request))
			if err != nil {
				if http2 {
					t.Errorf("HTTP/2: %v", err)
				}
				continue
			}
			body, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil && http2 || err == nil && string(body) != answer {
				t.Errorf("HTTP/2 is %v: status %d, %d bytes, %v", http2, res.StatusCode, len(body), err)
			}
		}
	}
}
