package engine

import "net/http"

// Watch is what looks at an answer as it passes.
type Watch struct{ w watch }

func (w Watch) See(piece []byte) { w.w.see(piece) }
func (w Watch) Complete() bool   { return w.w.complete() }

// NewWatch returns what looks at an answer of this path and media type, framed
// by the end of the connection.
func NewWatch(path, media string) Watch {
	return Watch{newWatch(path, media, &http.Response{StatusCode: 200, ContentLength: -1})}
}
