package pocket

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"token.place/openai"
)

// maxBody bounds a request, in bytes. The context holds a few kilobytes of text;
// the rest is room for long tool schemas and for a helpful error.
const maxBody = 1 << 20

// ServeHTTP answers the models, chat/completions and completions endpoints under
// /v1, and everything else with an OpenAI error object. A stream that has begun
// and cannot be finished panics with http.ErrAbortHandler, so that it never
// looks whole.
func (p *Pocket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	switch {
	case path == "/v1/models" || strings.HasPrefix(path, "/v1/models/"):
		if allow(w, r, http.MethodGet, http.MethodHead) {
			p.serveModels(w, path)
		}
	case path == "/v1/chat/completions" || path == "/v1/completions":
		if allow(w, r, http.MethodPost) {
			p.serveAnswer(w, r, path == "/v1/chat/completions")
		}
	case openai.Allowed(http.MethodPost, path):
		if allow(w, r, http.MethodPost) {
			openai.WriteError(w, http.StatusNotImplemented, openai.Error{Message: "pocket is a small demonstration model and does not offer " + path +
				"; it has /v1/chat/completions, /v1/completions and /v1/models", Code: "not_supported"})
		}
	default:
		openai.WriteError(w, http.StatusNotFound, openai.Error{Message: "there is no such endpoint; pocket has /v1/chat/completions, /v1/completions and /v1/models", Code: "unknown_path"})
	}
}

func allow(w http.ResponseWriter, r *http.Request, methods ...string) bool {
	for _, m := range methods {
		if r.Method == m {
			return true
		}
	}
	w.Header().Set("Allow", strings.Join(methods, ", "))
	openai.WriteError(w, http.StatusMethodNotAllowed, openai.Error{Message: "use " + methods[0] + " here", Code: "method_not_allowed"})
	return false
}

type modelObject struct {
	ID            string `json:"id"`
	Object        string `json:"object"`
	Created       int64  `json:"created"`
	OwnedBy       string `json:"owned_by"`
	ContextLength int    `json:"context_length"`
	MaxModelLen   int    `json:"max_model_len"` // vLLM's name for it
	Description   string `json:"description"`
}

func (p *Pocket) serveModels(w http.ResponseWriter, path string) {
	m := modelObject{modelID, "model", 1795305600, "token.place", p.model.limit, p.model.limit,
		"A demonstration model of about one million weights: it knows a few hundred words, small sums and short stories. For real work, connect a larger engine."}
	var body any = m
	switch strings.TrimPrefix(path, "/v1/models") {
	case "", "/":
		body = map[string]any{"object": "list", "data": []modelObject{m}}
	case "/" + modelID:
	default:
		f := unknownModel()
		openai.WriteError(w, f.status, f.Error)
		return
	}
	writeJSON(w, body)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(append(encode(v), '\n'))
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("internal error: " + err.Error()) // our own structs always encode
	}
	return b
}

func (p *Pocket) serveAnswer(w http.ResponseWriter, r *http.Request, chat bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		openai.WriteError(w, http.StatusRequestEntityTooLarge, openai.Error{Message: "the request is larger than 1 MiB", Code: "request_too_large"})
		return
	} else if err != nil {
		openai.WriteError(w, http.StatusBadRequest, openai.Error{Message: "the request's body ended early", Code: "incomplete_request"})
		return
	}
	t, f := p.parse(body, chat)
	if f != nil {
		openai.WriteError(w, f.status, f.Error)
		return
	}
	s, err := p.queue.acquire(r.Context())
	if errors.Is(err, errBusy) {
		w.Header().Set("Retry-After", "1")
		openai.WriteError(w, http.StatusTooManyRequests, openai.Error{Message: "pocket is busy and its queue is full; try again in a second", Code: "engine_busy"})
		return
	} else if err != nil {
		cancelled(w)
		return
	}
	defer p.queue.release(s)
	a := newAnswer(t.chat)
	if t.stream {
		stream(r.Context(), w, s, t, a)
	} else {
		whole(r.Context(), w, s, t, a)
	}
}

// cancelled answers a request that nobody waits for any more; in case somebody
// does, it says so.
func cancelled(w http.ResponseWriter) {
	openai.WriteError(w, http.StatusServiceUnavailable, openai.Error{Message: "the request was cancelled", Code: "cancelled"})
}

// An answer is the completion object, or one chunk of it.
type answer struct {
	ID          string   `json:"id"`
	Object      string   `json:"object"`
	Created     int64    `json:"created"`
	Model       string   `json:"model"`
	Fingerprint string   `json:"system_fingerprint"`
	Choices     []choice `json:"choices"`
	Usage       any      `json:"usage,omitempty"`
}

type choice struct {
	Index    int     `json:"index"`
	Text     *string `json:"text,omitempty"`
	Message  *said   `json:"message,omitempty"`
	Delta    *said   `json:"delta,omitempty"`
	Logprobs any     `json:"logprobs"`
	Finish   *string `json:"finish_reason"`
}

// said is a message of the assistant, or a part of one.
type said struct {
	Role      string     `json:"role,omitempty"`
	Content   any        `json:"content,omitempty"` // a string or null
	ToolCalls []toolUsed `json:"tool_calls,omitempty"`
}

type toolUsed struct {
	Index    *int     `json:"index,omitempty"` // in deltas
	ID       string   `json:"id,omitempty"`
	Type     string   `json:"type,omitempty"`
	Function function `json:"function"`
}

type function struct {
	Name      string `json:"name,omitempty"`
	Arguments string `json:"arguments"`
}

type usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Total      int `json:"total_tokens"`
}

func newAnswer(chat bool) answer {
	a := answer{ID: "cmpl-" + rand.Text(), Object: "text_completion", Created: time.Now().Unix(), Model: modelID, Fingerprint: fingerprint()}
	if chat {
		a.ID, a.Object = "chatcmpl-"+rand.Text(), "chat.completion"
	}
	return a
}

// whole answers t at once.
func whole(ctx context.Context, w http.ResponseWriter, s *session, t task, a answer) {
	var text strings.Builder
	msg := said{Role: "assistant"}
	finish, used, err := generate(ctx, s, t.prompt, func(d delta) error {
		text.WriteString(d.text)
		if d.call != "" {
			msg.ToolCalls = []toolUsed{{ID: "call_" + rand.Text(), Type: "function", Function: function{Name: d.call}}}
		}
		if d.arguments != "" {
			msg.ToolCalls[0].Function.Arguments += d.arguments
		}
		return nil
	})
	if err != nil {
		cancelled(w)
		return
	}
	out := text.String()
	c := choice{Finish: &finish}
	if t.chat {
		c.Message = &msg
		if msg.Content = out; out == "" && msg.ToolCalls != nil {
			msg.Content = json.RawMessage("null")
		}
	} else {
		c.Text = &out
	}
	a.Choices = []choice{c}
	a.Usage = usage{len(t.tokens), used, len(t.tokens) + used}
	writeJSON(w, a)
}

// stream answers t with an event for each token.
func stream(ctx context.Context, w http.ResponseWriter, s *session, t task, a answer) {
	if t.chat {
		a.Object = "chat.completion.chunk"
	}
	if t.usage {
		a.Usage = json.RawMessage("null")
	}
	e := &events{w: w, chat: t.chat, answer: a}
	finish, used, err := generate(ctx, s, t.prompt, e.emit)
	if err == nil {
		err = e.last(finish)
	}
	if err == nil && t.usage {
		e.answer.Choices, e.answer.Usage = []choice{}, usage{len(t.tokens), used, len(t.tokens) + used}
		err = e.send(encode(e.answer))
	}
	if err == nil {
		err = e.send([]byte("[DONE]"))
	}
	switch {
	case err != nil && !e.begun:
		cancelled(w)
	case err != nil:
		panic(http.ErrAbortHandler) // an end without error would tell the client this was all
	}
}

// events writes the chunks of one answer.
type events struct {
	w      http.ResponseWriter
	chat   bool
	answer answer // what all chunks share
	begun  bool
}

func (e *events) send(data []byte) error {
	if !e.begun {
		e.begun = true
		e.w.Header().Set("Content-Type", "text/event-stream")
		e.w.Header().Set("Cache-Control", "no-store")
	}
	if err := openai.WriteEvent(e.w, data); err != nil {
		return err
	}
	if err := http.NewResponseController(e.w).Flush(); !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

func (e *events) chunk(c choice) error {
	if e.chat && !e.begun {
		e.answer.Choices = []choice{{Delta: &said{Role: "assistant", Content: ""}}}
		if err := e.send(encode(e.answer)); err != nil {
			return err
		}
	}
	e.answer.Choices = []choice{c}
	return e.send(encode(e.answer))
}

func (e *events) emit(d delta) error {
	first := 0 // of the calls in an answer; there is only ever one
	switch {
	case !e.chat:
		return e.chunk(choice{Text: &d.text})
	case d.call != "":
		return e.chunk(choice{Delta: &said{ToolCalls: []toolUsed{{&first, "call_" + rand.Text(), "function", function{Name: d.call}}}}})
	case d.arguments != "":
		return e.chunk(choice{Delta: &said{ToolCalls: []toolUsed{{Index: &first, Function: function{Arguments: d.arguments}}}}})
	}
	return e.chunk(choice{Delta: &said{Content: d.text}})
}

func (e *events) last(finish string) error {
	if e.chat {
		return e.chunk(choice{Delta: &said{}, Finish: &finish})
	}
	return e.chunk(choice{Text: new(string), Finish: &finish})
}
