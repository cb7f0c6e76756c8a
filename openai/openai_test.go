package openai_test

import (
	"net/http/httptest"
	"strings"
	"testing"

	"token.place/openai"
)

func TestAllowed(t *testing.T) {
	for _, path := range []string{
		"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens",
		"/v1/audio/speech", "/v1/audio/transcriptions", "/v1/audio/translations",
		"/v1/images/generations", "/v1/images/edits", "/v1/images/variations",
	} {
		if !openai.Allowed("POST", path) {
			t.Errorf("POST %s is not allowed", path)
		}
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "post", "CONNECT", ""} {
			if openai.Allowed(method, path) {
				t.Errorf("%s %s is allowed", method, path)
			}
		}
	}
	for _, path := range []string{
		"/v1/models", "/v1/models/pocket", "/v1/models/llama3.2:1b", "/v1/models/Qwen/Qwen3-8B", "/v1/models/a@b+c~d_e", "/v1/models/%C3%A9", "/v1/models/...",
	} {
		if !openai.Allowed("GET", path) || openai.Allowed("POST", path) || openai.Allowed("DELETE", path) {
			t.Errorf("%s must be allowed with GET alone", path)
		}
	}
	for _, path := range []string{
		"", "/", "v1/models", "/v1", "/v1/", "/v1/models/", "//v1/models", "/v1//models", "/v1/./models", "/v1/models/.", "/v1/models/..",
		"/v1/models/../../api/pull", "/v1/models/a/../b", "/v1/models/a//b", "/v1/models/a/", "/v1/models/a%2Fb", "/v1/models/a%2fb", "/v1/models/%2e%2e",
		"/v1/models/%252e", "/v1/models/a%5Cb", `/v1/models/a\b`, "/v1/models/a%00", "/v1/models/a%0a", "/v1/models/%", "/v1/models/%4", "/v1/models/%zz",
		"/v1/models?x=1", "/v1/models/a?x", "/v1/models/a#b", "/v1/models/a b", "/v1/models/é", "/v1/models/" + strings.Repeat("x", 1024),
		"/V1/models", "/v1/Models", "/v1/models%2Fa", "/api/tags", "/api/pull", "/metrics", "/slots", "/props", "/v1/files", "/v1/fine_tuning/jobs", "/v1/chat/completions/",
		"/v1/%63hat/completions", "/v1/chat/completions;x", "http://x/v1/models",
	} {
		for _, method := range []string{"GET", "POST"} {
			if openai.Allowed(method, path) {
				t.Errorf("%s %q is allowed", method, path)
			}
		}
	}
}

func TestWriteError(t *testing.T) {
	for _, test := range []struct {
		status int
		e      openai.Error
		want   string
	}{
		{503, openai.Error{Message: "start it", Code: "engine_unavailable"}, `{"error":{"message":"start it","type":"server_error","param":null,"code":"engine_unavailable"}}`},
		{404, openai.Error{Message: "a \"b\"", Param: "model"}, `{"error":{"message":"a \"b\"","type":"invalid_request_error","param":"model","code":null}}`},
		{429, openai.Error{Type: "own"}, `{"error":{"message":"","type":"own","param":null,"code":null}}`},
		{401, openai.Error{}, `{"error":{"message":"","type":"authentication_error","param":null,"code":null}}`},
	} {
		w := httptest.NewRecorder()
		w.Header().Set("Content-Length", "5")
		openai.WriteError(w, test.status, test.e)
		h := w.Result().Header
		if w.Code != test.status || h.Get("Content-Type") != "application/json" || h.Get("Cache-Control") != "no-store" || h.Get("Content-Length") != "" {
			t.Errorf("got %d, %v", w.Code, h)
		}
		if got := strings.TrimSpace(w.Body.String()); got != test.want {
			t.Errorf("got %s", got)
		}
		if again, ok := openai.ReadError(w.Body); ok != (test.e.Message != "") || again.Message != test.e.Message || again.Code != test.e.Code || again.Param != test.e.Param {
			t.Errorf("read again: %+v, %v", again, ok)
		}
	}
}

func TestReadError(t *testing.T) {
	for _, test := range []struct {
		name, body string
		want       openai.Error
	}{
		{"llama-server", `{"error":{"code":400,"message":"request (17022 tokens) exceeds","type":"exceed_context_size_error","n_ctx":512}}`,
			openai.Error{Message: "request (17022 tokens) exceeds", Type: "exceed_context_size_error", Code: "400"}},
		{"Ollama", `{"error":{"message":"model 'x' not found","type":"api_error","param":null,"code":null}}`,
			openai.Error{Message: "model 'x' not found", Type: "api_error"}},
		{"Ollama's own API", `{"error":"model not found"}`, openai.Error{Message: "model not found"}},
		{"vLLM", `{"object":"error","message":"no model","type":"NotFoundError","param":null,"code":404}`,
			openai.Error{Message: "no model", Type: "NotFoundError", Code: "404"}},
		{"FastAPI", `{"detail":"Not Found"}`, openai.Error{Message: "Not Found"}},
		{"Anthropic", `{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}`, openai.Error{Message: "Overloaded", Type: "overloaded_error"}},
		{"HTML", `<html>`, openai.Error{}},
		{"an answer", `{"choices":[]}`, openai.Error{}},
		{"null", `{"error":null}`, openai.Error{}},
		{"array", `["error"]`, openai.Error{}},
		{"nothing", ``, openai.Error{}},
		{"long", `{"error":"` + strings.Repeat("x", 70<<10) + `"}`, openai.Error{}},
	} {
		got, ok := openai.ReadError(strings.NewReader(test.body))
		if got != test.want || ok != (test.want.Message != "") {
			t.Errorf("%s: got %+v, %v", test.name, got, ok)
		}
	}
}

func FuzzReadError(f *testing.F) {
	f.Add(`{"error":{"code":400,"message":"m","type":"t"}}`)
	f.Add(`{"detail":[1]}`)
	f.Fuzz(func(t *testing.T, body string) {
		if e, ok := openai.ReadError(strings.NewReader(body)); ok != (e.Message != "") {
			t.Fatalf("got %+v, %v", e, ok)
		}
	})
}
