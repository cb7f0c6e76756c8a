package pocket_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"token.place/engine/pocket"
	"token.place/openai"
)

func TestModels(t *testing.T) {
	p := open(t)
	get := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		p.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w
	}
	w := get("/v1/models")
	list, err := openai.ReadModels(strings.NewReader(w.Body.String()))
	if err != nil || len(list) != 1 || list[0].ID != "pocket" || list[0].ContextLength != 1024 || list[0].OwnedBy == "" || list[0].Created == 0 {
		t.Errorf("%+v, %v", list, err)
	}
	if !strings.Contains(w.Body.String(), "emonstration model") {
		t.Error("it does not say that it is a demonstration model")
	}
	if w := get("/v1/models/pocket"); w.Code != 200 || !strings.Contains(w.Body.String(), `"id":"pocket"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := get("/v1/models/other"); w.Code != 404 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestRefusals(t *testing.T) {
	p := open(t)
	hi := func(fields string) string { return chatBody(user("hi"), fields) }
	long := chatBody(user(strings.Repeat("word ", 2000)))
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/v1/chat/completions", "", 405, "POST"},
		{"DELETE", "/v1/models", "", 405, "GET"},
		{"GET", "/v1/embeddings", "", 405, "POST"},
		{"GET", "/", "", 404, "no such endpoint"},
		{"POST", "/v1/chat/completions/", "{}", 404, "no such endpoint"},
		{"POST", "/v1/embeddings", "{}", 501, "/v1/embeddings"},
		{"POST", "/v1/responses", "{}", 501, "/v1/responses"},
		{"POST", "/v1/audio/speech", "{}", 501, "does not offer"},
		{"POST", "", "", 400, "not valid JSON"},
		{"POST", "", "{", 400, "byte 1"},
		{"POST", "", `{"messages":[]} x`, 400, "byte 17"},
		{"POST", "", "[]", 400, "JSON object"},
		{"POST", "", "null", 400, "at least one message"},
		{"POST", "", `{"messages":{}}`, 400, "messages cannot be of type object"},
		{"POST", "", `{"messages":[{"role":5}]}`, 400, "cannot be of type"},
		{"POST", "", `{"messages":[{"role":"user","content":5}]}`, 400, "messages[0].content"},
		{"POST", "", `{"messages":[{"role":"user"}]}`, 400, "no content"},
		{"POST", "", `{"messages":[{"role":"king","content":"x"}]}`, 400, "messages[0].role"},
		{"POST", "", chatBody(`{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:"}}]}`), 400, "only text"},
		{"POST", "", `{"model":"gpt-4o","messages":[]}`, 404, "model_not_found"},
		{"POST", "", hi(`"n":2`), 400, "more than one answer"},
		{"POST", "", hi(`"logprobs":true`), 400, "logprobs"},
		{"POST", "", hi(`"top_logprobs":3`), 400, "logprobs"},
		{"POST", "", hi(`"response_format":{"type":"json_object"}`), 400, "response_format"},
		{"POST", "", hi(`"response_format":{"type":"json_schema","json_schema":{}}`), 400, "response_format"},
		{"POST", "", hi(`"functions":[]`), 400, "use tools"},
		{"POST", "", hi(`"max_tokens":0`), 400, "max_tokens"},
		{"POST", "", hi(`"max_tokens":1.5`), 400, "max_tokens"},
		{"POST", "", hi(`"temperature":3`), 400, "temperature"},
		{"POST", "", hi(`"temperature":"hot"`), 400, "temperature"},
		{"POST", "", hi(`"top_p":-1`), 400, "top_p"},
		{"POST", "", hi(`"stop":["a","b","c","d","e"]`), 400, "up to 4"},
		{"POST", "", hi(`"stop":[""]`), 400, "1 to"},
		{"POST", "", hi(`"stop":7`), 400, "stop"},
		{"POST", "", hi(`"tool_choice":"required"`), 400, "not among tools"},
		{"POST", "", hi(`"tool_choice":"sometimes"`), 400, "tool_choice"},
		{"POST", "", hi(`"tool_choice":7`), 400, "tool_choice"},
		{"POST", "", hi(`"tools":[{"type":"web_search"}]`), 400, "tools[0].type"},
		{"POST", "", hi(`"tools":[{"type":"function","function":{"name":"a b"}}]`), 400, "tools[0].function.name"},
		{"POST", "", hi(`"tool_choice":{"type":"function","function":{"name":"g"}},"tools":[{"type":"function","function":{"name":"f"}}]`), 400, "not among tools"},
		{"POST", "", hi(`"tools":[{"type":"function","function":{"name":"f","parameters":{"properties":[]}}}]`), 400, "cannot be of type"},
		{"POST", "", long, 400, "maximum context length is 1024 tokens"},
		{"POST", "", long, 400, "context_length_exceeded"},
		{"POST", "", chatBody(user(strings.Repeat("y", 900<<10))), 400, "at least"},
		{"POST", "", strings.Repeat(" ", 1<<20+1), 413, "1 MiB"},
		{"POST", "/v1/completions", `{}`, 400, "prompt"},
		{"POST", "/v1/completions", `{"prompt":["a","b"]}`, 400, "prompt"},
		{"POST", "/v1/completions", `{"prompt":[1,2]}`, 400, "prompt"},
		{"POST", "/v1/completions", `{"prompt":"a","echo":true}`, 400, "echo"},
		{"POST", "/v1/completions", `{"prompt":"a","logprobs":3}`, 400, "logprobs"},
	} {
		if c.path == "" {
			c.path = "/v1/chat/completions"
		}
		w := httptest.NewRecorder()
		p.ServeHTTP(w, httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)))
		e, ok := openai.ReadError(strings.NewReader(w.Body.String()))
		if w.Code != c.status || !ok || !strings.Contains(w.Body.String()+w.Header().Get("Allow"), c.want) {
			t.Errorf("%s %s %.80s: %d %+v, want %d and %q", c.method, c.path, c.body, w.Code, e, c.status, c.want)
		}
	}
	r := httptest.NewRequest("POST", "/v1/chat/completions", iotest.ErrReader(errors.New("gone")))
	w := httptest.NewRecorder()
	if p.ServeHTTP(w, r); w.Code != 400 {
		t.Errorf("half a body: %d", w.Code)
	}
	if n := p.Steps(t, 2); n != 0 {
		t.Errorf("refusals cost %d steps", n)
	}
}

// Schemas may be deep and wide; reading them is bounded.
func TestHostileSchemas(t *testing.T) {
	p := open(t)
	deep := strings.Repeat(`{"properties":{"a":`, 4000) + `{}` + strings.Repeat("}}", 4000)
	var wide strings.Builder
	for i := range 20000 {
		fmt.Fprintf(&wide, `,"p%d":{"type":"null"}`, i)
	}
	options := `{"properties":{"` + strings.Repeat("x", 400<<10) + `":{"enum":[0` + strings.Repeat(",1", 100<<10) + `]}}}`
	for _, schema := range []string{deep, `{"properties":{` + wide.String()[1:] + `}}`, `{"properties":{` + strings.ReplaceAll(wide.String()[1:], "null", "string") + `}}`, options} {
		got := ask(t, p, user("hi"), `"tool_choice":"required","max_tokens":20,"tools":[{"type":"function","function":{"name":"f","parameters":`+schema+`}}]`)
		if got.Usage.Completion > 20 {
			t.Errorf("%+v", got)
		}
	}
}

// A countdown is a context that is done the nth time anyone asks.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

func TestCancel(t *testing.T) {
	long := user(strings.Repeat("word ", 100))
	for name, fields := range map[string]string{"whole": `"stream":false`, "stream": `"stream":true`} {
		p := open(t)
		r := httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(chatBody(long, fields)))
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r.WithContext(&countdown{r.Context(), 51})) // the queue asks once
		if n := p.Steps(t, 2); n != 50 || w.Code != 503 {
			t.Errorf("%s, in prefill: %d steps, status %d", name, n, w.Code)
		}
	}

	fed := ask(t, open(t), user("Tell me a story."), `"max_tokens":1`).Usage.Prompt
	// The client goes after the fourth event, or can no longer be written to.
	for _, broken := range []error{nil, errors.New("broken pipe")} {
		p := open(t)
		ctx, cancel := context.WithCancel(t.Context())
		if broken != nil {
			cancel, ctx = func() {}, t.Context()
		}
		r := httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(chatBody(user("Tell me a story."), `"stream":true`))).WithContext(ctx)
		w := &limited{httptest.NewRecorder(), 4, cancel, broken}
		aborted := serve(p, w, r)
		if got := p.Steps(t, 2); got > fed+4 || !aborted || strings.Contains(w.Body.String(), "[DONE]") {
			t.Errorf("mid-stream: %d steps, aborted %t, %s", got, aborted, w.Body)
		}
	}
	// And without a stream, the answer is not finished for nobody.
	p := open(t)
	r := httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(chatBody(user("Tell me a story."))))
	p.ServeHTTP(httptest.NewRecorder(), r.WithContext(&countdown{r.Context(), 30}))
	if got := p.Steps(t, 2); got != 29 {
		t.Errorf("whole: %d steps", got)
	}
}

// limited is a client that goes away after some events.
type limited struct {
	*httptest.ResponseRecorder
	left int
	gone func()
	err  error
}

func (l *limited) Write(b []byte) (int, error) {
	if l.left--; l.left < 0 && l.err != nil {
		return 0, l.err
	} else if l.left == 0 {
		l.gone()
	}
	return l.ResponseRecorder.Write(b)
}

func serve(p *pocket.Pocket, w http.ResponseWriter, r *http.Request) (aborted bool) {
	defer func() {
		if v := recover(); v != nil {
			if v != http.ErrAbortHandler {
				panic(v)
			}
			aborted = true
		}
	}()
	p.ServeHTTP(w, r)
	return false
}

func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := pocket.New(pocket.Config{Slots: 1, Queue: 3})
		if err != nil {
			t.Fatal(err)
		}
		release := p.Hold(t)
		var order []string
		start := func(word string) (*httptest.ResponseRecorder, context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			w := httptest.NewRecorder()
			r := httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(chatBody(user(word), `"stream":true`, `"max_tokens":3`)))
			// The first write is made by whoever has the one slot.
			noted := &limited{w, 1, func() { order = append(order, word) }, nil}
			go p.ServeHTTP(noted, r.WithContext(ctx))
			synctest.Wait()
			return w, cancel
		}
		first, _ := start("first")
		second, leave := start("second")
		third, _ := start("third")
		if p.Waiting() != 3 {
			t.Fatalf("%d wait", p.Waiting())
		}
		refused, _ := start("refused")
		var e struct{ Error struct{ Code string } }
		json.Unmarshal(refused.Body.Bytes(), &e)
		if refused.Code != 429 || refused.Header().Get("Retry-After") == "" || e.Error.Code != "engine_busy" {
			t.Errorf("queue full: %d %v %s", refused.Code, refused.Header(), refused.Body)
		}
		for _, w := range []*httptest.ResponseRecorder{first, second, third} {
			if w.Body.Len() > 0 || len(w.Header()) > 0 || w.Flushed {
				t.Errorf("written while waiting: %v %s", w.Header(), w.Body)
			}
		}
		leave()
		synctest.Wait()
		if p.Waiting() != 2 {
			t.Errorf("%d wait after one left", p.Waiting())
		}
		if second.Code != 503 {
			t.Errorf("the one who left: %d", second.Code)
		}
		fourth, _ := start("fourth")
		release()
		synctest.Wait()
		if got := strings.Join(order, " "); got != "refused second first third fourth" {
			t.Errorf("served in the order %q", got)
		}
		for _, w := range []*httptest.ResponseRecorder{first, third, fourth} {
			if _, finish, _ := text(t, read(t, w)); finish == "" {
				t.Error("unfinished")
			}
		}
		p.Steps(t, 1)
	})
}

// A slot that is handed over just as its taker leaves goes to the next.
func TestHandOver(t *testing.T) {
	for range 50 {
		p, err := pocket.New(pocket.Config{Slots: 1})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Test(t, func(t *testing.T) {
			release := p.Hold(t)
			ctx, cancel := context.WithCancel(t.Context())
			r := httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(chatBody(user("hi"), `"max_tokens":1`)))
			go p.ServeHTTP(httptest.NewRecorder(), r.WithContext(ctx))
			synctest.Wait()
			go release()
			cancel()
			synctest.Wait()
			p.Steps(t, 1)
		})
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []pocket.Config{{Slots: -1}, {Queue: -1}} {
		if _, err := pocket.New(c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
}
