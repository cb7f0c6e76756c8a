package relay_test

import (
	"context"
	"io"
	"net/http"
	"testing"
	"testing/synctest"

	"token.place/relay"
)

// The exchanges of all clients and nodes together are bounded; one that ends
// leaves its place, however it ends.
func TestMaxExchanges(t *testing.T) {
	for _, proto := range both {
		t.Run(proto, func(t *testing.T) {
			test(t, relay.Config{MaxExchanges: 2}, func(w *world) {
				h := func(rw http.ResponseWriter, r *http.Request) {
					rw.Header().Set("Content-Type", "message/ohttp-chunked-res")
					io.WriteString(rw, "begun")
					http.NewResponseController(rw).Flush()
					<-r.Context().Done()
				}
				a, b := w.join(h), w.join(h)
				c := w.client(proto)
				ctx, cancel := context.WithCancel(context.Background())
				one, two := w.open(ctx, c, a.ID(), repeat(10)), w.open(ctx, c, b.ID(), repeat(10))
				res, body := w.exchange(c, a.ID(), repeat(10))
				w.problem(res, body, 503, "relay-busy")
				if res.Header.Get("Retry-After") != "1" {
					t.Errorf("Retry-After: %q", res.Header.Get("Retry-After"))
				}
				if got := w.listed(""); len(got) != 2 {
					t.Errorf("beside exchanges: %v", got)
				}
				cancel()
				one.Body.Close()
				two.Body.Close()
				synctest.Wait()
				for range 5 {
					ctx, cancel := context.WithCancel(context.Background())
					res := w.open(ctx, c, a.ID(), repeat(10))
					if res.StatusCode != http.StatusOK {
						t.Errorf("after two have ended: %d", res.StatusCode)
					}
					cancel()
					res.Body.Close()
					synctest.Wait()
				}
				c.CloseIdleConnections()
				a.close()
				b.close()
			})
		})
	}
}
