package pocket

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"token.place/openai"
)

// A fault is why a request is refused.
type fault struct {
	status int
	openai.Error
}

func refuse(param, format string, args ...any) *fault {
	return &fault{http.StatusBadRequest, openai.Error{Message: fmt.Sprintf(format, args...), Param: param}}
}

func unsupported(param, what string) *fault {
	return &fault{http.StatusBadRequest, openai.Error{Message: "pocket is a small demonstration model and does not support " + what +
		"; leave it out, or connect a larger engine", Param: param, Code: "unsupported_value"}}
}

// maxStop bounds a stop string, in bytes.
const maxStop = 1024

// A request is the body of a chat or plain completion. Fields that are not here
// are ignored, as are penalties: they change how an answer is drawn, not what a
// program may expect of it.
type request struct {
	Model     string          `json:"model"`
	Messages  []message       `json:"messages"`
	Prompt    json.RawMessage `json:"prompt"`
	Tools     []requestTool   `json:"tools"`
	Functions json.RawMessage `json:"functions"`
	Stop      json.RawMessage `json:"stop"`
	Stream    bool            `json:"stream"`

	StreamOptions *struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	ToolChoice          json.RawMessage `json:"tool_choice"`
	MaxTokens           *int            `json:"max_tokens"`
	MaxCompletionTokens *int            `json:"max_completion_tokens"`
	Temperature         *float64        `json:"temperature"`
	TopP                *float64        `json:"top_p"`
	Seed                *int64          `json:"seed"`
	N                   *int            `json:"n"`
	BestOf              *int            `json:"best_of"`
	Echo                bool            `json:"echo"`
	Suffix              string          `json:"suffix"`
	Logprobs            json.RawMessage `json:"logprobs"`
	TopLogprobs         *int            `json:"top_logprobs"`
	ResponseFormat      *struct {
		Type string `json:"type"`
	} `json:"response_format"`
}

type message struct {
	Role      string          `json:"role"`
	Content   json.RawMessage `json:"content"`
	ToolCalls []struct {
		Function struct {
			Name      string `json:"name"`
			Arguments string `json:"arguments"`
		} `json:"function"`
	} `json:"tool_calls"`
}

type requestTool struct {
	Type     string `json:"type"`
	Function struct {
		Name       string `json:"name"`
		Parameters schema `json:"parameters"`
	} `json:"function"`
}

// A task is a request that can be answered.
type task struct {
	prompt
	chat, stream, usage bool // usage: a last event says what the answer took
}

// parse makes a task of a request's body, or says what is wrong with it.
func (p *Pocket) parse(body []byte, chat bool) (task, *fault) {
	var r request
	if err := json.Unmarshal(body, &r); err != nil {
		return task{}, badJSON(err)
	}
	if r.Model != "" && r.Model != modelID {
		return task{}, unknownModel()
	}
	t := task{chat: chat, stream: r.Stream, usage: r.StreamOptions != nil && r.StreamOptions.IncludeUsage}
	if f := r.options(&t.prompt); f != nil {
		return task{}, f
	}
	var f *fault
	if chat {
		f = r.chat(p.model, &t.prompt)
	} else {
		f = r.complete(p.model, &t.prompt)
	}
	if f != nil {
		return task{}, f
	}
	return t, nil
}

func tooLong(param string, n, limit int, least string) *fault {
	f := refuse(param, "This model's maximum context length is %d tokens, prompt and answer together. The prompt has %s%d tokens; shorten it.", limit, least, n)
	f.Code = "context_length_exceeded"
	return f
}

func unknownModel() *fault {
	return &fault{http.StatusNotFound, openai.Error{Message: "there is no such model here; the only one is " + modelID, Param: "model", Code: "model_not_found"}}
}

func badJSON(err error) *fault {
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, &typ) && typ.Field != "":
		return refuse(typ.Field, "%s cannot be of type %s", typ.Field, typ.Value)
	case errors.As(err, &typ):
		return refuse("", "the body must be a JSON object, not of type %s", typ.Value)
	case errors.As(err, &syntax):
		return refuse("", "the body is not valid JSON: it goes wrong at byte %d", syntax.Offset)
	}
	return refuse("", "the body is not valid JSON")
}

// options reads how to answer. What the model cannot do and a program would
// notice is refused. Without a temperature the likeliest token is taken: at
// OpenAI's default of 1 a model this small says little that makes sense.
func (r *request) options(p *prompt) *fault {
	switch {
	case r.N != nil && *r.N != 1, r.BestOf != nil && *r.BestOf != 1:
		return unsupported("n", "more than one answer")
	case r.TopLogprobs != nil && *r.TopLogprobs != 0, len(r.Logprobs) > 0 && !slices.Contains([]string{"null", "false", "0"}, string(r.Logprobs)):
		return unsupported("logprobs", "logprobs")
	case r.ResponseFormat != nil && r.ResponseFormat.Type != "text":
		return unsupported("response_format", "any response_format but text")
	case len(r.Functions) > 0 && string(r.Functions) != "null":
		return unsupported("functions", "functions; use tools")
	case r.Echo:
		return unsupported("echo", "echo")
	case r.Suffix != "":
		return unsupported("suffix", "suffix")
	}
	p.max, p.topP, p.seed = 1<<30, 1, rand.Uint64()
	for _, n := range []*int{r.MaxTokens, r.MaxCompletionTokens} { // the newer name wins
		if n != nil {
			p.max = *n
		}
	}
	if p.max < 1 {
		return refuse("max_tokens", "max_tokens must be at least 1")
	}
	if r.Temperature != nil {
		if p.temperature = *r.Temperature; p.temperature < 0 || p.temperature > 2 {
			return refuse("temperature", "temperature must be from 0 to 2")
		}
	}
	if r.TopP != nil {
		if p.topP = *r.TopP; p.topP < 0 || p.topP > 1 {
			return refuse("top_p", "top_p must be from 0 to 1")
		}
	}
	if r.Seed != nil {
		p.seed = uint64(*r.Seed)
	}
	var f *fault
	p.stops, f = stops(r.Stop)
	return f
}

func stops(raw json.RawMessage) ([]string, *fault) {
	var one *string
	var many []string
	if len(raw) == 0 {
		return nil, nil
	}
	if json.Unmarshal(raw, &one) == nil {
		if one == nil || *one == "" {
			return nil, nil
		}
		many = []string{*one}
	} else if json.Unmarshal(raw, &many) != nil || len(many) > 4 {
		return nil, refuse("stop", "stop must be a string or up to 4 strings")
	}
	for _, s := range many {
		if s == "" || len(s) > maxStop {
			return nil, refuse("stop", "a stop string must have 1 to %d bytes", maxStop)
		}
	}
	return many, nil
}

// complete makes the prompt of a plain completion: the text as it is.
func (r *request) complete(m *model, p *prompt) *fault {
	var one string
	var many []string
	if json.Unmarshal(r.Prompt, &one) != nil || string(r.Prompt) == "null" {
		if json.Unmarshal(r.Prompt, &many) != nil || len(many) != 1 {
			return refuse("prompt", "prompt must be a string, or an array of one string")
		}
		one = many[0]
	}
	w := writer{m: m, param: "prompt", tokens: []int{m.vocab.bos}}
	w.text(one)
	p.tokens = w.tokens
	return w.fault()
}

// A writer lays out a prompt. Only control makes control tokens: whatever a
// text spells, it cannot speak as someone else.
type writer struct {
	m      *model
	param  string // the field it lays out
	tokens []int
	bytes  int // of text
}

func (w *writer) control(names ...string) {
	for _, n := range names {
		w.tokens = append(w.tokens, w.m.vocab.controls[n])
	}
}

func (w *writer) text(s string) {
	// Once there is too much for the context there is no use in encoding it.
	if w.bytes += len(s); w.bytes/w.m.vocab.longest < w.m.limit {
		w.tokens = w.m.vocab.encode(w.tokens, s)
	}
}

// fault says whether the prompt leaves no room for an answer.
func (w *writer) fault() *fault {
	if least := w.bytes / w.m.vocab.longest; least >= w.m.limit {
		return tooLong(w.param, least, w.m.limit, "at least ")
	}
	if n := len(w.tokens); n >= w.m.limit {
		return tooLong(w.param, n, w.m.limit, "")
	}
	return nil
}

var functionName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// chat lays out the conversation as the chat template in the model file does.
func (r *request) chat(m *model, p *prompt) *fault {
	if f := r.offered(p); f != nil {
		return f
	}
	if len(r.Messages) == 0 {
		return refuse("messages", "messages must hold at least one message")
	}
	const end = "</s>"
	w := writer{m: m, param: "messages", tokens: []int{m.vocab.bos}}
	if len(p.tools) > 0 {
		w.control(toolsTag)
		names := make([]string, len(r.Tools))
		for i, t := range r.Tools {
			names[i] = t.Function.Name
		}
		w.text(strings.Join(names, ", "))
		w.control(end)
	}
	for i, msg := range r.Messages {
		content, f := msg.text(fmt.Sprintf("messages[%d]", i))
		if f != nil {
			return f
		}
		switch msg.Role {
		case "tool":
			w.control(toolTag)
		case "assistant":
			for _, c := range msg.ToolCalls {
				w.control("<|assistant|>", toolCall)
				w.text(`{"name": "` + c.Function.Name + `", "arguments": ` + c.Function.Arguments + "}")
				w.control(end)
			}
			if len(msg.ToolCalls) > 0 {
				continue
			}
			w.control("<|assistant|>")
		case "system", "developer":
			w.control("<|system|>")
		case "user":
			w.control("<|user|>")
			p.said = content
		default:
			return refuse(fmt.Sprintf("messages[%d].role", i), "role must be system, developer, user, assistant or tool")
		}
		w.text(content)
		w.control(end)
	}
	w.control("<|assistant|>")
	p.tokens = w.tokens
	return w.fault()
}

// text returns the message's content: a string, null, or parts that are text.
func (m *message) text(where string) (string, *fault) {
	c := bytes.TrimSpace(m.Content)
	if len(c) == 0 || string(c) == "null" {
		if m.Role != "assistant" {
			return "", refuse(where+".content", "%s has no content", where)
		}
		return "", nil
	}
	var s string
	if json.Unmarshal(c, &s) == nil {
		return s, nil
	}
	var parts []struct{ Type, Text, Refusal string }
	if json.Unmarshal(c, &parts) != nil {
		return "", refuse(where+".content", "%s.content must be a string or an array of parts", where)
	}
	var texts []string
	for _, p := range parts {
		switch p.Type {
		case "text", "refusal":
			texts = append(texts, p.Text+p.Refusal)
		default:
			return "", unsupported(where+".content", "images, audio or files, only text")
		}
	}
	return strings.Join(texts, "\n"), nil
}

// offered reads which tools may be called, and whether one must be.
func (r *request) offered(p *prompt) *fault {
	var mode string
	var named struct {
		Type     string
		Function struct{ Name string }
	}
	if len(r.ToolChoice) > 0 && json.Unmarshal(r.ToolChoice, &mode) != nil {
		if json.Unmarshal(r.ToolChoice, &named) != nil || named.Type != "function" {
			return refuse("tool_choice", "tool_choice must be none, auto, required or a function")
		}
		mode = "named"
	}
	found := false
	for i, t := range r.Tools {
		name := t.Function.Name
		if t.Type != "function" {
			return unsupported(fmt.Sprintf("tools[%d].type", i), "tools that are not functions")
		}
		if !functionName.MatchString(name) {
			return refuse(fmt.Sprintf("tools[%d].function.name", i), "a function's name must be 1 to 64 letters, digits, _ or -")
		}
		if mode != "named" || name == named.Function.Name {
			found = true
			p.tools = append(p.tools, tool{name, t.Function.Parameters})
		}
	}
	switch mode {
	case "none":
		p.tools = nil
	case "required", "named":
		p.forced = true
		if !found {
			return refuse("tool_choice", "tool_choice asks for a tool that is not among tools")
		}
	case "", "auto":
	default:
		return refuse("tool_choice", "tool_choice must be none, auto, required or a function")
	}
	return nil
}
