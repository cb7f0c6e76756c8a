package relay_test

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"token.place/relay"
)

func TestExchange(t *testing.T) {
	for _, proto := range both {
		t.Run(proto, func(t *testing.T) {
			test(t, relay.Config{}, func(w *world) {
				n := w.join(func(rw http.ResponseWriter, r *http.Request) {
					b, _ := io.ReadAll(r.Body)
					chunked("one ", "two ", string(b))(rw, r)
				})
				c := w.client(proto)
				for _, body := range []io.Reader{strings.NewReader("three"), io.MultiReader(strings.NewReader("three")), repeat(300_000)} {
					res, got := w.exchange(c, n.ID(), body)
					if res.StatusCode != http.StatusOK || !strings.HasPrefix(got, "one two three") && len(got) != 300_008 {
						t.Errorf("%d %q", res.StatusCode, got[:min(len(got), 100)])
					}
				}
				if got := w.listed("?model=pocket"); !slices.Equal(got, []string{string(n.ID())}) {
					t.Errorf("directory: %v", got)
				}
				c.CloseIdleConnections()
				n.close()
			})
		})
	}
}
