package node_test

import (
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"token.place/identity"
	"token.place/internal/memnet"
	"token.place/node"
)

// Who sends the first piece of a request and then nothing, or next to nothing,
// keeps nobody out.
func TestSlowRequestsHoldNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		r1, r2 := newRelay(t, net, "one:443"), newRelay(t, net, "two:443")
		go r1.serve()
		go r2.serve()
		stub, eng := newEngine(t, "m")
		_, stop := start(t, node.Config{Relays: []identity.Relay{r1.addr, r2.addr}, Engine: eng, Capacity: 2, Dial: net.Dial})
		c, other := <-r1.came, <-r2.came
		next, end := status(t, c)
		bundle := next().Bundle
		slow := make(chan int, 2)
		for range cap(slow) {
			pr, pw := io.Pipe()
			go pw.Write(make([]byte, 20<<10))
			go func() {
				req, _ := http.NewRequest("POST", "https://node/v1/chat/completions", pr)
				res, err := seal(t, c, bundle).RoundTrip(req)
				if err != nil {
					t.Error(err)
					slow <- 0
					return
				}
				res.Body.Close()
				pr.Close()
				slow <- res.StatusCode
			}()
		}
		synctest.Wait()
		stub.proceed <- struct{}{}
		if code, body, err := chat(seal(t, other, bundle)); code != 200 {
			t.Errorf("beside slow requests through another relay: %d %s %v", code, body, err)
		}
		time.Sleep(time.Minute)
		stub.proceed <- struct{}{}
		if code, body, err := chat(seal(t, c, bundle)); code != 200 {
			t.Errorf("a minute later: %d %s %v", code, body, err)
		}
		for range cap(slow) {
			if code := <-slow; code != http.StatusRequestTimeout {
				t.Errorf("a slow request: %d", code)
			}
		}
		end()
		stop()
		r1.close()
		r2.close()
	})
}
