package engine

import (
	"bytes"
	"net/http"
	"slices"
)

// watch looks at an answer's bytes as they pass and knows at their end whether
// the engine finished. It allocates nothing for a piece.
type watch interface {
	see(piece []byte)
	complete() bool
}

// newWatch returns what can tell that an answer was cut off, beyond what the
// framing of HTTP tells.
func newWatch(path, media string, res *http.Response) watch {
	if res.StatusCode >= 300 {
		return trust{}
	}
	if media == "text/event-stream" {
		if ends := endings[path]; ends != nil {
			return &eventWatch{ends: ends}
		}
	}
	// Neither a length nor chunks: the end of the connection ends the body.
	if framed := res.ContentLength >= 0 || len(res.TransferEncoding) > 0; !framed && media == "application/json" {
		return &jsonWatch{}
	}
	return trust{}
}

type trust struct{}

func (trust) see([]byte)     {}
func (trust) complete() bool { return true }

// endings are the names of the events that end a stream, or its "[DONE]". The
// other endpoints have no agreed last event.
var endings = map[string][]string{
	"/v1/chat/completions": {"[DONE]", "error"},
	"/v1/completions":      {"[DONE]", "error"},
	"/v1/responses":        {"response.completed", "response.incomplete", "response.failed", "[DONE]", "error"},
	"/v1/messages":         {"message_stop", "error"},
}

// eventWatch finds the last event of a stream. An event that is an error counts
// as an end: no client takes it for an answer.
type eventWatch struct {
	ends   []string
	line   [80]byte // the start of the current line
	n      int      // bytes in line
	name   [40]byte // of the current event
	nameN  int
	ended  bool // the current event, once it is complete, is an end
	done   bool
	skipLF bool
}

func (w *eventWatch) see(b []byte) {
	for len(b) > 0 && !w.done {
		if w.skipLF {
			if w.skipLF = false; b[0] == '\n' {
				b = b[1:]
				continue
			}
		}
		end := bytes.IndexByte(b, '\n')
		if end < 0 {
			end = len(b)
		}
		if cr := bytes.IndexByte(b[:end], '\r'); cr >= 0 {
			end = cr
		}
		w.n += copy(w.line[w.n:], b[:end])
		if end == len(b) {
			return
		}
		w.skipLF = b[end] == '\r'
		b = b[end+1:]
		w.endLine()
	}
}

func (w *eventWatch) endLine() {
	line := w.line[:w.n]
	w.n = 0
	if len(line) == 0 {
		w.done = w.ended
		w.nameN, w.ended = 0, false
		return
	}
	field, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	switch string(field) {
	case "event":
		w.nameN = copy(w.name[:], value)
	case "data":
		w.ended = w.ended || w.isEnd(value)
		w.done = w.isDone(value) // its blank line is not waited for
	}
}

// isEnd reports whether an event with this data, or the start of it, is an end.
func (w *eventWatch) isEnd(data []byte) bool {
	for _, end := range w.ends {
		if string(w.name[:w.nameN]) == end {
			return true
		}
		// Some engines leave the name to the data.
		if rest, ok := bytes.CutPrefix(data, []byte(`{"type":`)); ok {
			rest = bytes.TrimPrefix(rest, []byte(" "))
			if len(rest) > len(end)+1 && rest[0] == '"' && string(rest[1:1+len(end)]) == end && rest[1+len(end)] == '"' {
				return true
			}
		}
	}
	return bytes.HasPrefix(data, []byte(`{"error":`))
}

func (w *eventWatch) isDone(data []byte) bool {
	return string(data) == "[DONE]" && slices.Contains(w.ends, "[DONE]")
}

func (w *eventWatch) complete() bool {
	if w.done {
		return true
	}
	// Nothing can be missing after [DONE], not even if its line did not end.
	data, ok := bytes.CutPrefix(w.line[:w.n], []byte("data:"))
	return ok && w.isDone(bytes.TrimPrefix(data, []byte(" ")))
}

// jsonWatch sees whether brackets and quotes are closed.
type jsonWatch struct {
	depth   int
	quoted  bool
	escaped bool
	begun   bool
}

func (w *jsonWatch) see(b []byte) {
	for _, c := range b {
		switch {
		case w.escaped:
			w.escaped = false
		case w.quoted && c == '\\':
			w.escaped = true
		case c == '"':
			w.quoted = !w.quoted
		case w.quoted:
		case c == '{' || c == '[':
			w.depth++
			w.begun = true
		case c == '}' || c == ']':
			w.depth--
		}
	}
}

func (w *jsonWatch) complete() bool { return w.begun && w.depth == 0 && !w.quoted }
