package openai

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
)

// Error is the error object of the OpenAI API. Message is for a person and says
// what to do; Code is for a program. The codes are listed in spec/api.md.
type Error struct {
	Message string
	Type    string // "" is written as what OpenAI uses for the status
	Param   string // the field at fault, or ""
	Code    string // or ""
}

// Error returns the message.
func (e Error) Error() string { return e.Message }

// wireError has the nulls that clients expect for what is not known.
type wireError struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    *string `json:"code"`
}

// MarshalJSON writes {"error":{"message","type","param","code"}}.
func (e Error) MarshalJSON() ([]byte, error) {
	w := wireError{Message: e.Message, Type: e.Type}
	if e.Param != "" {
		w.Param = &e.Param
	}
	if e.Code != "" {
		w.Code = &e.Code
	}
	return json.Marshal(map[string]wireError{"error": w})
}

// WriteError answers a request with e.
func WriteError(w http.ResponseWriter, status int, e Error) {
	if e.Type == "" {
		e.Type = errorType(status)
	}
	body, err := json.Marshal(e)
	if err != nil {
		panic("internal error: " + err.Error()) // strings always encode
	}
	h := w.Header()
	h.Del("Content-Length")
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(append(body, '\n'))
}

func errorType(status int) string {
	switch {
	case status == http.StatusUnauthorized:
		return "authentication_error"
	case status == http.StatusForbidden:
		return "permission_error"
	case status == http.StatusTooManyRequests:
		return "rate_limit_error"
	case status >= 500:
		return "server_error"
	}
	return "invalid_request_error"
}

// maxError bounds the body of an error, in bytes.
const maxError = 64 << 10

// ReadError reads an error's body, from its first 64 KiB. It takes OpenAI's
// shape and those of the engines that differ: a number as code (llama-server),
// the error as a string (Ollama), the object without a wrapper (vLLM), detail
// (FastAPI). It reports whether there was an error with a message.
func ReadError(r io.Reader) (Error, bool) {
	body, err := io.ReadAll(io.LimitReader(r, maxError))
	if err != nil {
		return Error{}, false
	}
	var outer struct {
		Error, Detail, Message json.RawMessage
	}
	if json.Unmarshal(body, &outer) != nil {
		return Error{}, false
	}
	object := []byte(outer.Error)
	if outer.Message != nil && (object == nil || string(object) == "null") {
		object = body
	}
	var inner struct {
		Message, Type, Param, Code json.RawMessage
	}
	if bytes.HasPrefix(object, []byte("{")) && json.Unmarshal(object, &inner) == nil {
		e := Error{text(inner.Message), text(inner.Type), text(inner.Param), text(inner.Code)}
		return e, e.Message != ""
	}
	e := Error{Message: text(outer.Error)}
	if e.Message == "" {
		e.Message = text(outer.Detail)
	}
	return e, e.Message != ""
}

// text reads a string, or a number as it is written; everything else is "".
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	var n json.Number
	if json.Unmarshal(raw, &n) == nil {
		return strings.TrimSpace(n.String())
	}
	return ""
}
