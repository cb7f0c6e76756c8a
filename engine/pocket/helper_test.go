package pocket_test

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	"token.place/engine/pocket"
)

const cityTools = `[` +
	`{"type":"function","function":{"name":"get_time","description":"d","parameters":{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}},` +
	`{"type":"function","function":{"name":"get_weather","description":"d","parameters":{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}}]`

func open(t testing.TB) *pocket.Pocket {
	t.Helper()
	p, err := pocket.New(pocket.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

type call struct {
	Index    *int
	ID, Type string
	Function struct{ Name, Arguments string }
}

type message struct {
	Role      string
	Content   *string
	ToolCalls []call `json:"tool_calls"`
}

// completion is an answer or a chunk of one, as a client reads it.
type completion struct {
	ID, Object, Model string
	Created           int64
	Fingerprint       string `json:"system_fingerprint"`
	Choices           []struct {
		Index          int
		Message, Delta message
		Text           string
		Finish         *string `json:"finish_reason"`
	}
	Usage *struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
		Total      int `json:"total_tokens"`
	}
}

func (c completion) content() string {
	if s := c.Choices[0].Message.Content; s != nil {
		return *s
	}
	return ""
}
func (c completion) finish() string { return *c.Choices[0].Finish }
func (c completion) calls() []call  { return c.Choices[0].Message.ToolCalls }

// user is a message as it stands in a request.
func user(text string) string {
	b, _ := json.Marshal(text)
	return `{"role":"user","content":` + string(b) + `}`
}

func post(p *pocket.Pocket, path, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader(body)))
	return w
}

func chatBody(messages string, fields ...string) string {
	return `{"model":"pocket","messages":[` + messages + `]` + strings.Join(append([]string{""}, fields...), ",") + `}`
}

func ask(t testing.TB, p *pocket.Pocket, messages string, fields ...string) completion {
	t.Helper()
	w := post(p, "/v1/chat/completions", chatBody(messages, fields...))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	var c completion
	if err := json.Unmarshal(w.Body.Bytes(), &c); err != nil || len(c.Choices) != 1 {
		t.Fatalf("%v: %s", err, w.Body)
	}
	return c
}
