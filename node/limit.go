package node

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"

	"token.place/openai"
)

const (
	// readAhead is how much of a request has to be there before it takes a place:
	// all of nearly every one. The tunnel ends those that do not come.
	readAhead = 1 << 20

	// readers is how many requests beyond the capacity may be read ahead.
	readers = 16
)

// limit holds exchanges to the node's capacity over all its relays. Each relay
// knows it for its own tunnel; only the node sees them together. A request
// counts when it has arrived: one that does not come keeps nobody out.
func (n *Node) limit(next http.Handler) http.Handler {
	reading := make(chan struct{}, n.cfg.Capacity+readers)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.state.full() {
			busy(w)
			return
		}
		select {
		case reading <- struct{}{}:
		default:
			busy(w)
			return
		}
		err := arrive(r)
		taken := err == nil && n.state.take()
		<-reading
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			openai.WriteError(w, http.StatusRequestTimeout, openai.Error{
				Code: "slow_request", Message: "The request came too slowly. Send it again over a better connection."})
			return
		case err != nil:
			openai.WriteError(w, http.StatusBadRequest, openai.Error{
				Code: "incomplete_request", Message: "The request did not arrive whole. Send it again."})
			return
		case !taken:
			busy(w)
			return
		}
		defer n.state.release()
		next.ServeHTTP(w, r)
	})
}

func busy(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "1")
	openai.WriteError(w, http.StatusTooManyRequests, openai.Error{
		Code:    "node_busy",
		Message: "This node already runs as many requests as it takes. Try again in a moment, or let the client choose another node.",
	})
}

// arrive waits for the first readAhead bytes of r's body, or for its end.
func arrive(r *http.Request) error {
	if r.ContentLength == 0 {
		return nil
	}
	var head bytes.Buffer
	if n := r.ContentLength; n > 0 && n <= readAhead {
		head.Grow(int(n) + bytes.MinRead)
	}
	if _, err := head.ReadFrom(io.LimitReader(r.Body, readAhead)); err != nil {
		return err
	}
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(&head, r.Body), r.Body}
	return nil
}
