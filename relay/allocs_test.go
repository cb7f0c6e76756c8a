//go:build !race

package relay_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"token.place/relay"
)

// What an exchange allocates on the relay, with the node's end of the tunnel,
// which is in the same process. It stood at 95 when this was written; a few more
// may come with a Go release, many more are ours.
func TestExchangeAllocations(t *testing.T) {
	w := start(t, relay.Config{Log: discard})
	n := w.joinFor(t, 8, func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		rw.Header()["Content-Type"] = []string{"message/ohttp-res"}
		io.WriteString(rw, "answer")
	})
	body := strings.NewReader("")
	req := httptest.NewRequest("POST", "/v1/exchange/"+string(n.ID()), body)
	req.Header = sealed()
	req.ContentLength = 5
	got := testing.AllocsPerRun(200, func() {
		body.Reset("hello")
		rec := &discardWriter{header: http.Header{}}
		if w.relay.ServeHTTP(rec, req); rec.status != 200 {
			t.Fatal(rec.status)
		}
	})
	if t.Logf("%v allocations", got); got > 120 {
		t.Errorf("%v allocations for an exchange", got)
	}
	n.close()
	w.close()
}
