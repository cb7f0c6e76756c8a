// Package openai is the little we need of the OpenAI wire format.
//
// An exchange carries an API request whole, from a client's program to an
// engine and back, so nothing here decodes one into structures: that would lose
// the fields we do not know and turn 1.0 into 1. Peek looks at a body for what
// routing needs, WithModel replaces one value in it, and Events reads a streamed
// answer. What is allowed to pass, and the errors a caller sees, are in
// spec/api.md.
package openai

import (
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxPath bounds a path that Allowed looks at, in bytes.
const maxPath = 1024

// posts are the paths that take a POST, all of them with the model in the body.
var posts = map[string]bool{
	"/v1/chat/completions":      true,
	"/v1/completions":           true,
	"/v1/responses":             true,
	"/v1/embeddings":            true,
	"/v1/messages":              true,
	"/v1/messages/count_tokens": true,
	"/v1/audio/speech":          true,
	"/v1/audio/transcriptions":  true,
	"/v1/audio/translations":    true,
	"/v1/images/generations":    true,
	"/v1/images/edits":          true,
	"/v1/images/variations":     true,
}

// Allowed reports whether a request may reach an engine. The path is in its
// escaped form (url.URL.EscapedPath), without a query, and is matched to the
// byte: nothing is cleaned or unescaped first, so no other spelling of a path
// passes. Only the id of GET /v1/models/{id} varies; it may have slashes, as
// ids do, but no empty or dot segments and no escaped slash, backslash, dot,
// percent sign or control character.
func Allowed(method, path string) bool {
	switch method {
	case http.MethodPost:
		return posts[path]
	case http.MethodGet:
		if path == "/v1/models" {
			return true
		}
		id, ok := strings.CutPrefix(path, "/v1/models/")
		return ok && len(path) <= maxPath && plainSegments(id)
	}
	return false
}

func plainSegments(path string) bool {
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return false
		}
		for i := 0; i < len(segment); i++ {
			switch c := segment[i]; {
			case c <= ' ' || c >= 0x7f || strings.IndexByte(`\?#"<>`, c) >= 0:
				return false
			case c == '%':
				if i+2 >= len(segment) {
					return false
				}
				hi, lo := unhex(segment[i+1]), unhex(segment[i+2])
				if hi < 0 || lo < 0 {
					return false
				}
				b := byte(hi<<4 | lo)
				if b < ' ' || b == 0x7f || strings.IndexByte(`/\.%`, b) >= 0 {
					return false
				}
			}
		}
	}
	return true
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// maxID bounds a model's id, in bytes.
const maxID = 256

// ValidID reports whether id can name a model: 1 to 256 bytes of UTF-8, all of it
// printable, so that what a person sees is what it is.
func ValidID(id string) bool {
	unprintable := func(r rune) bool { return !unicode.IsPrint(r) }
	return id != "" && len(id) <= maxID && utf8.ValidString(id) && !strings.ContainsFunc(id, unprintable)
}
