package engine

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"

	"token.place/openai"
)

// judge returns the code of the error to answer with in place of an answer that
// no OpenAI client could read or that is not meant for the client, or "". An
// engine's own errors pass when they are JSON.
func judge(r *http.Request, res *http.Response, media string) (code string) {
	status, encoding := res.StatusCode, res.Header.Get("Content-Encoding")
	isJSON := media == "application/json" || strings.HasSuffix(media, "+json")
	switch {
	case status == http.StatusUnauthorized:
		return "engine_refused_key"
	case status < 200, status >= 300 && status < 400, encoding != "" && encoding != "identity":
		return "engine_bad_answer"
	case status < 300 && isJSON:
		if !beginsJSON(res) {
			return "engine_bad_answer"
		}
	case isJSON:
	case status < 300:
		// Speech is sound, a transcription may be text and an image may be anything.
		anything := strings.HasPrefix(r.URL.Path, "/v1/audio/") || strings.HasPrefix(r.URL.Path, "/v1/images/")
		if media != "text/event-stream" && (!anything || media == "text/html") {
			return "engine_bad_answer"
		}
	case status == http.StatusNotFound, status == http.StatusMethodNotAllowed, status == http.StatusNotImplemented:
		return "engine_lacks_endpoint"
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		return "engine_busy"
	case status == http.StatusRequestEntityTooLarge:
		return "request_too_large"
	default:
		return "engine_bad_answer"
	}
	return ""
}

// beginsJSON waits for the answer's first byte and reports whether an object,
// an array or a blank begins there.
func beginsJSON(res *http.Response) bool {
	body := bufio.NewReaderSize(res.Body, 512)
	first, err := body.Peek(1)
	res.Body = struct {
		io.Reader
		io.Closer
	}{body, res.Body}
	return err == nil && strings.IndexByte("{[ \t\r\n", first[0]) >= 0
}

// failureCode says why the engine gave no answer.
func failureCode(err error, body *requestBody) (code string) {
	if broken := body.err.Load(); broken != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(*broken, &tooLarge) {
			return "request_too_large"
		}
		return "incomplete_request"
	}
	var network *net.OpError
	if errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) {
		return "engine_unavailable"
	}
	return "engine_bad_answer"
}

// fail answers with the error of this code, unless it is only a consequence:
// of a client that went away or of our own patience.
func (e *Engine) fail(ctx context.Context, w http.ResponseWriter, r *http.Request, code string) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // nobody is there to read an error
	}
	if context.Cause(ctx) == errSilent {
		code = "engine_timeout"
	}
	f := failures[code]
	openai.WriteError(w, f.status, openai.Error{Message: f.message, Code: code})
}

// failures are for the person at the client, who cannot see the node's engine
// and must not learn its address.
var failures = map[string]struct {
	status  int
	message string
}{
	"engine_unavailable": {http.StatusServiceUnavailable,
		"The node's engine is not running or stopped before it answered. Try again or choose another node; " +
			"the node's operator has to start the engine, for example with: ollama serve"},
	"engine_busy": {http.StatusServiceUnavailable,
		"The node's engine has no room for another request. Try again in a moment or choose another node."},
	"engine_timeout": {http.StatusGatewayTimeout,
		"The node's engine was silent for too long and the request was given up. " +
			"Ask for a stream or for a shorter answer, or choose another node."},
	"engine_bad_answer": {http.StatusBadGateway,
		"The node's engine answered with something that is not the OpenAI API. Choose another node; " +
			"the node's operator has to check that the engine's URL is that of an OpenAI-compatible server."},
	"engine_refused_key": {http.StatusBadGateway,
		"The node's engine refused the node's API key; yours is not at fault. Choose another node; " +
			"the node's operator has to correct the key."},
	"engine_lacks_endpoint": {http.StatusNotFound,
		"The node's engine does not have this endpoint. Choose another node, or use /v1/chat/completions, which every engine has."},
	"request_too_large": {http.StatusRequestEntityTooLarge,
		"The request is larger than this node accepts. Send less, such as a smaller file or a shorter conversation."},
	"incomplete_request": {http.StatusBadRequest,
		"The request ended before it was complete. Send it again."},
}
