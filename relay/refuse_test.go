package relay_test

import (
	"errors"
	"testing"
	"time"

	"token.place/identity"
	"token.place/relay"
	"token.place/tunnel"
)

// A node that is not taken hears why.
func TestNodesHearWhy(t *testing.T) {
	friend := credential(t)
	for want, c := range map[tunnel.Refusal]struct {
		cfg  relay.Config
		line func(w *world, c *identity.Credential) string
	}{
		tunnel.RefusedNotAllowed: {cfg: relay.Config{Nodes: []identity.ID{friend.ID()}}},
		tunnel.RefusedFull:       {cfg: relay.Config{MaxNodes: 1}},
		tunnel.RefusedMalformed:  {line: func(*world, *identity.Credential) string { return "{}" }},
		tunnel.RefusedExpired: {line: func(w *world, c *identity.Credential) string {
			d := descriptor()
			d.NotBefore, d.NotAfter = d.NotBefore.Add(-2*time.Hour), d.NotBefore.Add(-time.Hour)
			return bundleLine(w, c, d)
		}},
	} {
		test(t, c.cfg, func(w *world) {
			first := w.connect(friend, 8, chunked("answer"))
			first.lines <- bundleLine(w, friend, descriptor())
			w.settle()
			own := credential(w)
			n := w.connect(own, 8, chunked("answer"))
			if c.line != nil {
				n.lines <- c.line(w, own)
			} else {
				n.lines <- bundleLine(w, own, descriptor())
			}
			err := <-n.ended
			var refused *tunnel.RefusedError
			if !errors.As(err, &refused) || refused.Reason != want {
				t.Errorf("%s: %v", want, err)
			}
			first.close()
		})
	}
}
